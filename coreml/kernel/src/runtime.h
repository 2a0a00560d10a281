// What every computation needs: a code path, a precision and a pool of threads.
#pragma once

#include <memory>

#include "kernels.h"
#include "mobilemoe.h"
#include "thread_pool.h"

struct mobilemoe_runtime {
  mobilemoe_runtime(const mobilemoe::Kernels& chosen, int precision,
                    std::shared_ptr<mobilemoe::ThreadPool> threads)
      : kernels(chosen),
        products(*chosen.products[precision]),
        shared_pool(std::move(threads)),
        pool(*shared_pool) {}

  const mobilemoe::Kernels& kernels;
  const mobilemoe::Products& products;
  const std::shared_ptr<mobilemoe::ThreadPool> shared_pool;  // with runtimes of other precisions
  mobilemoe::ThreadPool& pool;
};

namespace mobilemoe {

using Runtime = mobilemoe_runtime;

// A stretch of a phase's work, cut so that a task is long against the cost of taking it.
struct Cut {
  int size;   // of the whole
  int chunk;  // of a task; the last may be shorter

  int tasks() const { return (size + chunk - 1) / chunk; }
  int begin(int task) const { return task * chunk; }
  int end(int task) const { return size - task * chunk < chunk ? size : (task + 1) * chunk; }
};

// Tokens that a task prepares, norms or routes.
constexpr int kTokensPerTask = 8;

inline Cut cut_tokens(int count) { return {count, kTokensPerTask}; }

}  // namespace mobilemoe
