#include "arm64_features.h"

#include "kernels.h"

#if defined(MOBILEMOE_ARM64)

#include <cstddef>

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mobilemoe {

#if defined(__APPLE__)

namespace {

bool is_one(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value == 1;
}

}  // namespace

bool has_dotprod() { return is_one("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return is_one("hw.optional.arm.FEAT_I8MM"); }

#elif defined(__linux__)

// Bits of the Linux kernel's arch/arm64/include/uapi/asm/hwcap.h, which older headers lack.
bool has_dotprod() { return (getauxval(AT_HWCAP) & 1ul << 20) != 0; }  // HWCAP_ASIMDDP
bool has_i8mm() { return (getauxval(AT_HWCAP2) & 1ul << 13) != 0; }    // HWCAP2_I8MM

#else

bool has_dotprod() { return false; }
bool has_i8mm() { return false; }

#endif

}  // namespace mobilemoe

#endif  // MOBILEMOE_ARM64
