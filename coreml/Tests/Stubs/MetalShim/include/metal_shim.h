// Runs the kernels of a .metal file that was compiled as C++: serially, threadgroup after threadgroup.
#ifndef METAL_SHIM_H
#define METAL_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Where a kernel's parameter comes from: a buffer or threadgroup memory of the caller, or one of
// Metal's attributes.
typedef enum metal_shim_source {
  METAL_SHIM_POINTER = 0,
  METAL_SHIM_THREADGROUP_POSITION_IN_GRID = 1,
  METAL_SHIM_THREAD_INDEX_IN_THREADGROUP = 2,
  METAL_SHIM_THREAD_INDEX_IN_SIMDGROUP = 3,
  METAL_SHIM_SIMDGROUP_INDEX_IN_THREADGROUP = 4,
  METAL_SHIM_SIMDGROUPS_PER_THREADGROUP = 5
} metal_shim_source;

typedef struct metal_shim_argument {
  metal_shim_source source;
  void* pointer;
} metal_shim_argument;

// Whether kernels run here: not under a sanitizer, which takes fibers for a fault.
bool metal_shim_runs(void);

// The number of the kernel's parameters; -1: there is none of this name.
int32_t metal_shim_parameters(const char* name);

// NULL, or what is wrong: threads of a threadgroup that did not all reach a barrier.
const char* metal_shim_run(const char* name, const metal_shim_argument* arguments,
                           const uint32_t groups[3], uint32_t threads);

#ifdef __cplusplus
}
#endif

#endif
