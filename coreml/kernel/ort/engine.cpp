#include "engine.h"

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "node.h"

namespace mobilemoe::ort {
namespace {

constexpr int kMostThreads = 16;
constexpr const char* kPrecisions[] = {"exact", "int16", "int8"};

}  // namespace

int precision_of(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kPrecisions[i]) return i;
  }
  return -1;
}

int default_threads() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) cpus = CPU_COUNT(&allowed);
#endif
  return std::clamp(cpus, 1, kMostThreads);
}

Engine::Engine(const Settings& wanted) : settings(wanted) {
  if (!settings.precision.empty()) runtime(settings.precision);
}

Runtime& Engine::runtime(const std::string& attribute) {
  const std::string& name = settings.precision.empty() ? attribute : settings.precision;
  const int precision = precision_of(name);
  if (precision < 0) {
    refuse("the precision \"%.60s\" is unknown: exact, int16 and int8 are there.", name.c_str());
  }
  const std::lock_guard<std::mutex> lock(creating_);
  if (runtimes_[precision] == nullptr) {
    for (const auto& other : runtimes_) {
      if (other == nullptr) continue;
      runtimes_[precision].reset(new Runtime(other->kernels, precision, other->shared_pool));
      return *runtimes_[precision];
    }
    const mobilemoe_runtime_options options{
        precision, settings.threads, settings.cpu_path.empty() ? nullptr : settings.cpu_path.c_str()};
    Runtime* made;
    mobilemoe_error error;
    check(mobilemoe_runtime_create(&options, &made, &error), error);
    runtimes_[precision].reset(made);
  }
  return *runtimes_[precision];
}

void* Engine::room(size_t bytes) {
  if (bytes > room_bytes_) {
    room_.reset();
    room_bytes_ = 0;
    room_.reset(new uint8_t[bytes]);
    room_bytes_ = bytes;
  }
  return room_.get();
}

std::shared_ptr<Engine> SharedEngine::get() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<Engine> engine = engine_.lock();
  if (engine == nullptr) {
    engine = std::make_shared<Engine>(settings_);
    engine_ = engine;
  }
  return engine;
}

}  // namespace mobilemoe::ort
