// Routed experts that are read when they are needed, kept while there is room.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "expert.h"
#include "status.h"

namespace mobilemoe {

// The memory is cut into slots of one expert each. A step is one layer's use of its experts, for one
// token or for a block of them: `begin` it, compute with ranges of experts that `wait` has told to be there,
// `release` these, and `end` it. One step at a time; meanwhile threads of the cache read ahead, and so
// does the caller while it has to wait.
//
// The expert that makes room is the one that the fewest tokens have used lately: a use counts half
// after kHalfLife tokens. Where one pass through the layers uses more experts than there are slots, a prompt
// does, those whose layer is still to come stay until it has come.
class ExpertCache {
 public:
  // Throws std::bad_alloc or std::system_error.
  ExpertCache(const mobilemoe_moe_shape& shape, int layers, const mobilemoe_expert_source& source);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  static size_t least_bytes(const mobilemoe_moe_shape& shape);

  // A step of `layer` for `tokens` tokens with the experts used[0] to used[count - 1], which are put into
  // the order in which they will be there, and stay so until the end. uses [E]: how many tokens
  // use an expert.
  void begin(int layer, int tokens, const int32_t* uses, int32_t* used, int count);
  // Waits for position `first` of `used`; those from it to the returned position - 1 are there, with their
  // places in `weights` [count]. `first`: 0, or where the range before ended, which was released. 0 when
  // reading has failed.
  int wait(int first, ExpertWeights* weights);
  void release(int first, int last);
  // Waits for what is being read. The sentence of the reading that failed, if one has.
  Status end(Error* error);

  mobilemoe_expert_counters counters() const;

 private:
  // Where the parts of an expert lie in a slot.
  struct Layout {
    explicit Layout(const mobilemoe_moe_shape& shape);
    size_t gate_up_scales, down_codes, down_scales;
    size_t bytes;         // of a slot
    size_t weight_bytes;  // of the weights in it
  };

  struct Slot {
    int32_t expert = kNone;  // layer * E + expert, when its weights are there
    bool held = false;       // by the step
  };

  struct FreeMemory {
    void operator()(void* memory) const { std::free(memory); }
  };

  static constexpr int32_t kNone = -1;

  uint8_t* memory_of(int32_t slot) const { return first_slot_ + slot * layout_.bytes; }
  void hold(int position, int32_t slot);
  void give_back(int32_t slot);
  int32_t least_needed() const;
  bool claim(int* position);
  void read(std::unique_lock<std::mutex>& lock, int position);
  void reader();

  const mobilemoe_expert_source source_;
  const Layout layout_;
  const int experts_, layers_, slot_count_;
  std::unique_ptr<void, FreeMemory> memory_;
  uint8_t* first_slot_;
  std::atomic<int64_t> hits_{0}, misses_{0}, bytes_read_{0};

  // All of the following is guarded by the mutex.
  std::mutex mutex_;
  std::condition_variable work_;   // there is something to read
  std::condition_variable ready_;  // something was read
  bool stop_ = false;
  std::vector<Slot> slots_;
  int free_;                      // slots that are not held
  std::vector<int32_t> slot_of_;  // [layers, E]: where an expert's weights are, or kNone
  std::vector<double> score_;     // [layers, E]: its uses, in the weight that a use now has
  double use_weight_ = 1;         // which grows with time, so that nothing has to shrink
  // Of the step; by position in `used`.
  int layer_ = 0, count_ = 0;
  int32_t* used_ = nullptr;
  std::vector<int32_t> misses_of_step_;  // room for [E]
  std::vector<int32_t> held_;            // the slot
  std::vector<uint8_t> there_;           // whether its weights are
  bool overflows_ = false;               // whether a pass like this step uses more than there is room for
  int hit_count_ = 0;
  int next_ = 0;       // to be read
  int handed_out_ = 0;  // the end of what `wait` gave
  int reading_ = 0;    // under way
  bool failed_ = false;
  char message_[MOBILEMOE_MESSAGE_BYTES] = "";

  std::vector<std::thread> readers_;
};

}  // namespace mobilemoe
