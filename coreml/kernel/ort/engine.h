// What the nodes of a session share: one pool of threads, and room for their intermediate results.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "runtime.h"

namespace mobilemoe::ort {

// A session's entries of configuration.
struct Settings {
  int threads;            // "mobilemoe.threads"
  std::string cpu_path;   // "mobilemoe.cpu_path"; empty: the fastest
  std::string precision;  // "mobilemoe.precision": in the place of the nodes' attribute; empty: that
};

// MOBILEMOE_EXACT, ...; -1 for a name that is none.
int precision_of(const std::string& name);

// Threads where the settings name none: one for each CPU that this process may use, at most 16.
int default_threads();

class Engine {
 public:
  // Throws Mistake for settings that the kernel does not take.
  explicit Engine(const Settings& settings);

  // Runtimes of all precisions have the same pool. Throws Mistake for an unknown name.
  Runtime& runtime(const std::string& attribute);

  // At least so many bytes, for who holds the pool's turn, until it is given back.
  void* room(size_t bytes);

  const Settings settings;

 private:
  struct Destroy {
    void operator()(Runtime* runtime) const { mobilemoe_runtime_destroy(runtime); }
  };

  std::mutex creating_;
  std::unique_ptr<Runtime, Destroy> runtimes_[3];
  std::unique_ptr<uint8_t[]> room_;
  size_t room_bytes_ = 0;
};

// The engine of the sessions that were made with the same options: there as long as one of them is.
class SharedEngine {
 public:
  explicit SharedEngine(Settings settings) : settings_(std::move(settings)) {}

  std::shared_ptr<Engine> get();

 private:
  const Settings settings_;
  std::mutex mutex_;
  std::weak_ptr<Engine> engine_;
};

}  // namespace mobilemoe::ort
