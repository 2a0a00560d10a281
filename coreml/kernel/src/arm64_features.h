// Which instructions an arm64 CPU has beyond those that all have, as the system tells.
#pragma once

namespace mobilemoe {

bool has_dotprod();  // FEAT_DotProd: sdot
bool has_i8mm();     // FEAT_I8MM: smmla

}  // namespace mobilemoe
