#include "expert_cache.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "bytes.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mobilemoe {
namespace {

// Threads that read. The caller of `wait` is one more.
constexpr int kReaders = 2;
// Experts that are read ahead of those that are being computed. Each takes the slot of another expert, which
// may be needed sooner.
constexpr int kAhead = 8;
// Tokens after which a use counts half. Between 32 and 512 it hardly matters (docs/decisions.md).
constexpr double kHalfLife = 128;
constexpr double kLargestWeight = 1e100;  // of a use; then all scores are divided by it
constexpr size_t kAlignment = 64;         // of a slot and its parts
constexpr size_t kLargePage = 2 << 20;    // of x86-64 and arm64; with them, reading is faster

size_t values_of(const mobilemoe_moe_shape& shape) {
  return static_cast<size_t>(shape.hidden_size) * shape.intermediate_size;
}

int slots_of(const mobilemoe_moe_shape& shape, int layers, size_t memory_bytes, size_t slot_bytes) {
  const size_t all = static_cast<size_t>(layers) * shape.num_local_experts;
  return static_cast<int>(std::min(all, memory_bytes / slot_bytes));
}

}  // namespace

ExpertCache::Layout::Layout(const mobilemoe_moe_shape& shape) {
  const size_t values = values_of(shape);
  gate_up_scales = round_up(values, kAlignment);
  down_codes = gate_up_scales + round_up(values / 8, kAlignment);
  down_scales = down_codes + round_up(values / 2, kAlignment);
  bytes = down_scales + round_up(values / 16, kAlignment);
  weight_bytes = values + values / 8 + values / 2 + values / 16;
}

size_t ExpertCache::least_bytes(const mobilemoe_moe_shape& shape) {
  // Two, so that one can be read while the other is computed.
  const size_t least = std::max(shape.num_experts_per_tok, 2);
  return least * Layout(shape).bytes;
}

ExpertCache::ExpertCache(const mobilemoe_moe_shape& shape, int layers,
                         const mobilemoe_expert_source& source)
    : source_(source),
      layout_(shape),
      experts_(shape.num_local_experts),
      layers_(layers),
      slot_count_(slots_of(shape, layers, source.memory_bytes, layout_.bytes)),
      // Untouched until it is used, and before the first slot for good.
      memory_(std::malloc(slot_count_ * layout_.bytes + kLargePage)),
      slots_(slot_count_),
      free_(slot_count_),
      slot_of_(static_cast<size_t>(layers) * experts_, kNone),
      score_(slot_of_.size()),
      misses_of_step_(experts_),
      held_(experts_),
      there_(experts_) {
  if (memory_ == nullptr) throw std::bad_alloc();
  first_slot_ = reinterpret_cast<uint8_t*>(
      round_up(reinterpret_cast<uintptr_t>(memory_.get()), kLargePage));
#if defined(MADV_HUGEPAGE)
  madvise(first_slot_, slot_count_ * layout_.bytes, MADV_HUGEPAGE);  // a wish
#endif
  readers_.reserve(kReaders);
  try {
    for (int i = 0; i < kReaders; ++i) readers_.emplace_back([this] { reader(); });
  } catch (...) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    work_.notify_all();
    for (auto& thread : readers_) thread.join();
    throw;
  }
}

ExpertCache::~ExpertCache() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (auto& thread : readers_) thread.join();
}

void ExpertCache::begin(int layer, int tokens, const int32_t* uses, int32_t* used, int count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (layer == 0) use_weight_ *= std::exp2(tokens / kHalfLife);
  if (use_weight_ > kLargestWeight) {
    for (double& score : score_) score /= use_weight_;
    use_weight_ = 1;
  }
  layer_ = layer;
  used_ = used;
  count_ = count;
  overflows_ = static_cast<int64_t>(count) * layers_ > slot_count_;
  hit_count_ = handed_out_ = 0;
  int misses = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t expert = layer * experts_ + used[i], slot = slot_of_[expert];
    score_[expert] += uses[used[i]] * use_weight_;
    if (slot == kNone) {
      misses_of_step_[misses++] = used[i];
      continue;
    }
    hold(hit_count_, slot);
    there_[hit_count_] = true;
    used[hit_count_++] = used[i];
  }
  std::copy_n(misses_of_step_.begin(), misses, used + hit_count_);
  std::fill(there_.begin() + hit_count_, there_.begin() + count, uint8_t{false});
  next_ = hit_count_;
  hits_.fetch_add(hit_count_, std::memory_order_relaxed);
  misses_.fetch_add(misses, std::memory_order_relaxed);
  if (misses > 0) work_.notify_all();
}

int ExpertCache::wait(int first, ExpertWeights* weights) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!there_[first]) {
    int position;
    if (failed_) return 0;
    if (claim(&position)) {
      read(lock, position);
    } else {
      ready_.wait(lock);
    }
  }
  // Half of the slots are left for reading.
  const int most = std::max(slot_count_ / 2, 1);
  int last = first;
  for (; last < count_ && last - first < most && there_[last]; ++last) {
    const uint8_t* expert = memory_of(held_[last]);
    weights[last] = {{expert, expert + layout_.gate_up_scales},
                     {expert + layout_.down_codes, expert + layout_.down_scales}};
  }
  handed_out_ = last;
  if (next_ < count_) work_.notify_all();
  return last;
}

void ExpertCache::release(int first, int last) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (int i = first; i < last; ++i) give_back(held_[i]);
  if (next_ < count_) work_.notify_all();
}

Status ExpertCache::end(Error* error) {
  std::unique_lock<std::mutex> lock(mutex_);
  ready_.wait(lock, [this] { return reading_ == 0; });
  // After a failure: what was held is given back.
  for (int i = handed_out_; i < next_; ++i) {
    if (there_[i]) give_back(held_[i]);
  }
  count_ = next_ = 0;
  if (!failed_) return MOBILEMOE_OK;
  failed_ = false;
  message_[sizeof message_ - 1] = '\0';
  return fail(error, MOBILEMOE_READ_FAILED, "%s", message_);
}

mobilemoe_expert_counters ExpertCache::counters() const {
  return {hits_.load(std::memory_order_relaxed), misses_.load(std::memory_order_relaxed),
          bytes_read_.load(std::memory_order_relaxed), slot_count_};
}

// A position to read, with the slot for it.
bool ExpertCache::claim(int* position) {
  if (failed_ || next_ == count_ || free_ == 0 ||
      next_ - std::max(handed_out_, hit_count_) >= kAhead) {
    return false;
  }
  *position = next_++;
  const int32_t slot = least_needed();
  if (slots_[slot].expert != kNone) slot_of_[slots_[slot].expert] = kNone;
  slots_[slot].expert = kNone;
  hold(*position, slot);
  ++reading_;
  return true;
}

void ExpertCache::read(std::unique_lock<std::mutex>& lock, int position) {
  const int32_t slot = held_[position];
  const int layer = layer_, expert = used_[position];
  lock.unlock();
  uint8_t* memory = memory_of(slot);
  const mobilemoe_expert_buffers buffers{memory, memory + layout_.gate_up_scales,
                                         memory + layout_.down_codes,
                                         memory + layout_.down_scales};
  char message[MOBILEMOE_MESSAGE_BYTES] = "";
  const bool fine = source_.read(source_.owner, layer, expert, &buffers, message) == 0;
  lock.lock();
  --reading_;
  if (fine) {
    slots_[slot].expert = layer * experts_ + expert;
    slot_of_[slots_[slot].expert] = slot;
    there_[position] = true;
    bytes_read_.fetch_add(layout_.weight_bytes, std::memory_order_relaxed);
  } else {
    give_back(slot);
    if (!failed_) std::copy_n(message, sizeof message, message_);
    failed_ = true;
  }
  ready_.notify_all();
}

void ExpertCache::reader() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_) {
    int position;
    if (claim(&position)) {
      read(lock, position);
    } else {
      work_.wait(lock);
    }
  }
}

void ExpertCache::hold(int position, int32_t slot) {
  slots_[slot].held = true;
  --free_;
  held_[position] = slot;
}

void ExpertCache::give_back(int32_t slot) {
  slots_[slot].held = false;
  ++free_;
}

// The slot to read into, of those that are not held: there is one.
int32_t ExpertCache::least_needed() const {
  int32_t best = kNone;
  int best_wait = 0;
  double best_score = 0;
  for (int32_t slot = 0; slot < slot_count_; ++slot) {
    const int32_t expert = slots_[slot].expert;
    if (slots_[slot].held) continue;
    if (expert == kNone) return slot;
    // Layers until its turn comes: that of a layer behind, in the next pass.
    const int ahead = overflows_ ? expert / experts_ - layer_ : 0;
    const int wait = ahead > 0 ? ahead : layers_;
    if (best == kNone || wait > best_wait || (wait == best_wait && score_[expert] < best_score)) {
      best = slot;
      best_wait = wait;
      best_score = score_[expert];
    }
  }
  return best;
}

}  // namespace mobilemoe
