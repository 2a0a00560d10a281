#include "metal_shim.h"

#include <csetjmp>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#include "../../../Sources/MobileMoECoreML/Metal/experts.metal"

#undef kernel
#undef device
#undef constant
#undef thread
#undef threadgroup

namespace metal_shim {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr uint32_t kSimdgroup = 32;

// What a group of threads waits at: it opens when as many have come as live.
struct Gate {
  uint32_t members = 0, arrived = 0, turn = 0;
};

struct Values {
  uint3 group;
  uint32_t index, threads;
};

using Body = void (*)(const metal_shim_argument*, const Values&);

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  jmp_buf here;
  bool started = false, live = false;
  const Gate* waits_at = nullptr;
  uint32_t turn = 0;
};

// One threadgroup at a time. Fibers are kept for the next.
struct Group {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Gate> simdgroups;
  std::vector<uint32_t> places;
  Gate all;
  jmp_buf scheduler;
  uint32_t current = 0, alive = 0;
  Body body = nullptr;
  const metal_shim_argument* arguments = nullptr;
  Values values{};
} group;

void back_to_scheduler() {
  Fiber& fiber = *group.fibers[group.current];
  if (_setjmp(fiber.here) == 0) _longjmp(group.scheduler, 1);
}

void wait_at(Gate& gate) {
  Fiber& fiber = *group.fibers[group.current];
  if (++gate.arrived == gate.members) {
    gate.arrived = 0;
    ++gate.turn;
    return;
  }
  fiber.waits_at = &gate;
  fiber.turn = gate.turn;
  back_to_scheduler();
}

// A fiber's whole life: one thread of each threadgroup.
void live_on() {
  for (;;) {
    Values values = group.values;
    values.index = group.current;
    group.body(group.arguments, values);
    group.fibers[group.current]->live = false;
    --group.alive;
    back_to_scheduler();
  }
}

void resume(Fiber& fiber) {
  if (_setjmp(group.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, live_on, 0);
  setcontext(&fiber.context);
}

const char* run_group(uint32_t threads) {
  while (group.fibers.size() < threads) group.fibers.push_back(std::make_unique<Fiber>());
  group.simdgroups.assign(threads / kSimdgroup, Gate{kSimdgroup, 0, 0});
  group.places.assign(threads, 0);
  group.all = Gate{threads, 0, 0};
  group.alive = threads;
  for (uint32_t i = 0; i < threads; ++i) {
    group.fibers[i]->live = true;
    group.fibers[i]->waits_at = nullptr;
  }
  while (group.alive > 0) {
    bool moved = false;
    for (uint32_t i = 0; i < threads; ++i) {
      Fiber& fiber = *group.fibers[i];
      if (!fiber.live || (fiber.waits_at != nullptr && fiber.waits_at->turn == fiber.turn)) continue;
      fiber.waits_at = nullptr;
      group.current = i;
      moved = true;
      resume(fiber);
    }
    if (!moved) {
      // Those that wait would never go on: they are given up.
      group.fibers.clear();
      return "Some threads wait at a barrier that others of their group never reach.";
    }
  }
  return nullptr;
}

template <typename P>
P argument(const metal_shim_argument& from, const Values& values) {
  if constexpr (std::is_pointer_v<P>) {
    return reinterpret_cast<P>(from.pointer);
  } else if constexpr (std::is_reference_v<P>) {
    return *reinterpret_cast<std::remove_reference_t<P>*>(from.pointer);
  } else if constexpr (std::is_same_v<P, uint3>) {
    return values.group;
  } else {
    switch (from.source) {
      case METAL_SHIM_THREADGROUP_POSITION_IN_GRID: return values.group.x;
      case METAL_SHIM_THREAD_INDEX_IN_THREADGROUP: return values.index;
      case METAL_SHIM_THREAD_INDEX_IN_SIMDGROUP: return values.index % kSimdgroup;
      case METAL_SHIM_SIMDGROUP_INDEX_IN_THREADGROUP: return values.index / kSimdgroup;
      case METAL_SHIM_SIMDGROUPS_PER_THREADGROUP: return values.threads / kSimdgroup;
      case METAL_SHIM_POINTER: break;
    }
    return 0;
  }
}

template <typename... P, size_t... I>
void call(void (*f)(P...), const metal_shim_argument* arguments, const Values& values,
          std::index_sequence<I...>) {
  f(argument<P>(arguments[I], values)...);
}

template <typename... P>
constexpr int32_t count(void (*)(P...)) {
  return sizeof...(P);
}

struct Kernel {
  const char* name;
  int32_t parameters;
  Body body;
};

#define KERNEL(F)                                                                    \
  {#F, count(F), [](const metal_shim_argument* arguments, const Values& values) {    \
     call(F, arguments, values, std::make_index_sequence<count(F)>());               \
   }}

const Kernel kernels[] = {
    KERNEL(experts_norm),         KERNEL(experts_router),    KERNEL(experts_select),
    KERNEL(experts_gate_up_one),  KERNEL(experts_down_one),  KERNEL(shared_gate_up_one),
    KERNEL(shared_down_one),      KERNEL(experts_sort),      KERNEL(experts_gate_up_many),
    KERNEL(experts_down_many),    KERNEL(shared_gate_up_many), KERNEL(shared_down_many),
};

const Kernel* find(const char* name) {
  for (const Kernel& found : kernels) {
    if (std::strcmp(found.name, name) == 0) return &found;
  }
  return nullptr;
}

}  // namespace

void threadgroup_sync() { wait_at(group.all); }
void simdgroup_sync() { wait_at(group.simdgroups[group.current / kSimdgroup]); }
uint32_t* simdgroup_places() { return &group.places[group.current / kSimdgroup * kSimdgroup]; }
uint32_t lane() { return group.current % kSimdgroup; }

}  // namespace metal_shim

bool metal_shim_runs() {
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  return false;
#else
  return true;
#endif
}

int32_t metal_shim_parameters(const char* name) {
  const metal_shim::Kernel* found = metal_shim::find(name);
  return found == nullptr ? -1 : found->parameters;
}

const char* metal_shim_run(const char* name, const metal_shim_argument* arguments,
                           const uint32_t groups[3], uint32_t threads) {
  using namespace metal_shim;
  const Kernel* found = find(name);
  if (found == nullptr) return "There is no such kernel.";
  if (threads == 0 || threads % kSimdgroup != 0 || threads > 1024) return "A wrong number of threads.";
  group.body = found->body;
  group.arguments = arguments;
  group.values.threads = threads;
  for (uint32_t z = 0; z < groups[2]; ++z) {
    for (uint32_t y = 0; y < groups[1]; ++y) {
      for (uint32_t x = 0; x < groups[0]; ++x) {
        group.values.group = {x, y, z};
        if (const char* error = run_group(threads)) return error;
      }
    }
  }
  return nullptr;
}
