#include "thread_pool.h"

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace mobilemoe {
namespace {

// Between two jobs of one forward pass lie microseconds; after this time without a job, sleep.
constexpr std::chrono::microseconds kPatience{2000};
constexpr int kSpins = 200;         // looks before the core is offered to others
constexpr int kLooksAClock = 64;    // yields between two looks at the clock

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits a little: spins first, then yields, for spinning would keep the very thread that is waited
// for from its core when there are fewer cores than threads.
void wait_a_little(int* looks) {
  if (++*looks < kSpins) {
    pause();
  } else {
    std::this_thread::yield();
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads), ranges_(new Ranges[threads]) {
  workers_.reserve(threads - 1);
  try {
    for (int thread = 1; thread < threads; ++thread) {
      workers_.emplace_back([this, thread] { worker(thread); });
    }
  } catch (...) {
    stop_ = true;
    for (auto& worker : workers_) worker.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(sleep_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::start(Call call, const void* context, int first, int f_tasks, int g_tasks) {
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  job_ = {call, context, first};
  unfinished_.store(f_tasks + g_tasks, std::memory_order_relaxed);
  const int tasks[kKinds] = {f_tasks, g_tasks};
  for (int thread = 0; thread < threads_; ++thread) {
    for (int kind = 0; kind < kKinds; ++kind) {
      const uint64_t begin = share_begin(tasks[kind], thread);
      const uint64_t end = share_begin(tasks[kind], thread + 1);
      ranges_[thread].of_kind[kind].store(uint64_t{epoch} << 32 | begin << 16 | end,
                                          std::memory_order_release);
    }
  }
  // Both sequentially consistent, like the sleeper's counting itself and then looking at the epoch:
  // one of the two sees the other.
  epoch_.store(epoch);
  if (sleepers_.load() > 0) {
    { const std::lock_guard<std::mutex> lock(sleep_); }
    wake_.notify_all();
  }
  work(0, epoch);
  int looks = 0;
  while (unfinished_.load(std::memory_order_acquire) != 0) wait_a_little(&looks);
}

bool ThreadPool::take(std::atomic<uint64_t>& range, uint32_t epoch, int* task) {
  uint64_t state = range.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t next = state >> 16 & 0xffff, end = state & 0xffff;
    if (state >> 32 != epoch || next >= end) return false;
    if (range.compare_exchange_weak(state, state + (1u << 16), std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      *task = static_cast<int>(next);
      return true;
    }
  }
}

void ThreadPool::work(int thread, uint32_t epoch) {
  int done = 0;
  for (int offset = 0; offset < threads_; ++offset) {
    Ranges& ranges = ranges_[(thread + offset) % threads_];
    for (int kind = 0; kind < kKinds; ++kind) {
      int task;
      while (take(ranges.of_kind[kind], epoch, &task)) {
        job_.call(job_.context, kind, job_.first + task, thread);
        ++done;
      }
    }
  }
  // Once, for the line with the count goes from core to core. With none done, the job may be over.
  if (done > 0) unfinished_.fetch_sub(done, std::memory_order_acq_rel);
}

void ThreadPool::worker(int thread) {
  uint32_t seen = 0;
  for (;;) {
    int looks = 0;
    auto idle_since = std::chrono::steady_clock::now();
    uint32_t epoch;
    while ((epoch = epoch_.load(std::memory_order_acquire)) == seen) {
      if (stop_.load(std::memory_order_relaxed)) return;
      wait_a_little(&looks);
      if (looks % kLooksAClock != 0 || std::chrono::steady_clock::now() - idle_since < kPatience) {
        continue;
      }
      std::unique_lock<std::mutex> lock(sleep_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return epoch_.load() != seen || stop_.load(); });
      sleepers_.fetch_sub(1);
      idle_since = std::chrono::steady_clock::now();
    }
    seen = epoch;
    work(thread, epoch);
  }
}

}  // namespace mobilemoe
