#include "runtime.h"

#include <cstring>
#include <new>
#include <system_error>

#include "status.h"

using namespace mobilemoe;

namespace {

constexpr int kMostThreads = 16;

const Kernels* find_kernels(const char* name) {
  int count;
  const Kernels* const* all = all_kernels(&count);
  for (int i = 0; i < count; ++i) {
    const bool wanted = name == nullptr || std::strcmp(name, all[i]->name) == 0;
    if (wanted && all[i]->runs_here()) return all[i];
  }
  return nullptr;
}

}  // namespace

int32_t mobilemoe_abi_version(void) { return MOBILEMOE_ABI_VERSION; }

const char* mobilemoe_cpu_path_name(int32_t index) {
  int count;
  const Kernels* const* all = all_kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (all[i]->runs_here() && index-- == 0) return all[i]->name;
  }
  return nullptr;
}

mobilemoe_status mobilemoe_runtime_create(const mobilemoe_runtime_options* options,
                                          mobilemoe_runtime** runtime, mobilemoe_error* error) {
  if (options == nullptr || runtime == nullptr) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "runtime_create: a pointer is NULL.");
  }
  *runtime = nullptr;
  if (options->precision < MOBILEMOE_EXACT || options->precision > MOBILEMOE_INT8) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "There is no precision %d: 0 to 2 are known.",
                options->precision);
  }
  if (options->threads < 1 || options->threads > kMostThreads) {
    return fail(error, MOBILEMOE_BAD_ARGUMENT, "%d threads: a runtime has 1 to %d.",
                static_cast<int>(options->threads), kMostThreads);
  }
  const Kernels* kernels = find_kernels(options->cpu_path);
  if (kernels == nullptr) {
    return fail(error, MOBILEMOE_UNSUPPORTED_CPU,
                "The code path \"%.40s\" is not in this build, or this CPU cannot run it.",
                options->cpu_path);
  }
  try {
    *runtime = new mobilemoe_runtime(*kernels, options->precision,
                                     std::make_shared<ThreadPool>(options->threads));
  } catch (const std::bad_alloc&) {
    return fail(error, MOBILEMOE_OUT_OF_MEMORY, "No memory for a runtime.");
  } catch (const std::system_error&) {
    return fail(error, MOBILEMOE_OUT_OF_MEMORY, "The system did not start %d threads.",
                static_cast<int>(options->threads - 1));
  }
  return succeed(error);
}

void mobilemoe_runtime_destroy(mobilemoe_runtime* runtime) { delete runtime; }

const char* mobilemoe_runtime_cpu_path(const mobilemoe_runtime* runtime) {
  return runtime->kernels.name;
}
