// Products in plain C++: slow, and what the others are compared with.
#pragma once

#include "kernels.h"

namespace mobilemoe {
namespace portable {

extern const Products kExact;
extern const Products kInt16;
extern const Products kInt8;

}  // namespace portable
}  // namespace mobilemoe
