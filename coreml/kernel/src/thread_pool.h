// A pool that runs numbered tasks on a fixed number of threads, the caller among them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace mobilemoe {

// Each thread has a range of the tasks, so that it walks through memory in order, and takes tasks
// of others when its own are done: a thread whose core is busy elsewhere delays one task only.
// Nobody waits for threads, only for tasks.
class ThreadPool {
 public:
  // Throws std::bad_alloc or std::system_error.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // The first of a thread's own tasks, of those of one kind.
  int share_begin(int tasks, int thread) const {
    return static_cast<int>(static_cast<int64_t>(tasks) * thread / threads_);
  }
  // Whether a task ends the share of `*owner`.
  bool ends_share(int tasks, int task, int* owner) const {
    for (*owner = 0; *owner < threads_; ++*owner) {
      const int begin = share_begin(tasks, *owner), end = share_begin(tasks, *owner + 1);
      if (task + 1 == end && begin < end) return true;
    }
    return false;
  }

  // One caller at a time: hold this around `run`.
  std::mutex& turn() { return turn_; }

  // Calls f(task, thread) for task 0 to tasks - 1, thread below threads().
  template <typename F>
  void run(int tasks, const F& f) {
    run(tasks, f, 0, [](int, int) {});
  }

  // Two kinds of tasks at once; each thread begins with its share of the first.
  template <typename F, typename G>
  void run(int f_tasks, const F& f, int g_tasks, const G& g) {
    if (threads_ == 1 || f_tasks + g_tasks <= 1) {
      for (int task = 0; task < f_tasks; ++task) f(task, 0);
      for (int task = 0; task < g_tasks; ++task) g(task, 0);
      return;
    }
    const Pair<F, G> pair{f, g};
    const auto call = [](const void* context, int kind, int task, int thread) {
      const auto& functions = *static_cast<const Pair<F, G>*>(context);
      if (kind == 0) {
        functions.f(task, thread);
      } else {
        functions.g(task, thread);
      }
    };
    for (int done = 0; done < f_tasks || done < g_tasks; done += kMostTasks) {
      start(call, &pair, done, share(f_tasks - done), share(g_tasks - done));
    }
  }

 private:
  static constexpr int kKinds = 2;
  static constexpr int kMostTasks = 65535;  // what 16 bits count

  template <typename F, typename G>
  struct Pair {
    const F& f;
    const G& g;
  };

  using Call = void (*)(const void* context, int kind, int task, int thread);

  struct Job {
    Call call = nullptr;
    const void* context = nullptr;
    int first = 0;
  };

  // Epoch in the upper 32 bits, next task in the middle 16, end of the range in the lower 16. The
  // epoch keeps a thread that slept through a job from taking a task of the next in its name.
  // A thread's ranges lie in one line of its own.
  struct alignas(64) Ranges {
    std::atomic<uint64_t> of_kind[kKinds] = {};
  };

  static int share(int tasks) { return tasks < 0 ? 0 : tasks < kMostTasks ? tasks : kMostTasks; }

  void start(Call call, const void* context, int first, int f_tasks, int g_tasks);
  void work(int thread, uint32_t epoch);
  bool take(std::atomic<uint64_t>& range, uint32_t epoch, int* task);
  void worker(int thread);

  const int threads_;
  std::mutex turn_;

  std::unique_ptr<Ranges[]> ranges_;  // [thread]
  // In one line: who sees a new epoch has its job at hand.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  Job job_;  // read only by who holds one of its tasks
  alignas(64) std::atomic<int> unfinished_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace mobilemoe
