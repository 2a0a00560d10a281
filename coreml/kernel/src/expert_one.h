// One token times a routed expert, with rounded activations. A template of the loops
// (vectors_avx2.h): what is particular to a precision and a CPU is in `Inner`.
//
// The scale of a weight depends on its input and its group of outputs, so that it cannot be taken
// out of a sum over inputs: it is multiplied into the activation, and the product is rounded, for
// each 16 inputs and group of outputs. 16 whole rows are walked at a time, which lie together in
// memory.
//
// Inner:
//   V                   eight floats, for the rounding
//   Wide                the vectors of the product: 4 lanes for each of kGroups groups of outputs
//   kLimit              of the rounded activations
//   kTogether, kWords   rows that are interleaved, and words of 32 bits that hold their activations
//   pack(q, word)       makes one of those
//   initial(sum)        with what sums begin: less what unsigned codes add
//   Sums                of kGroups groups: begin(initial), add(codes of rows, words), flush(steps,
//                       sums), which adds them to 32 floats a group
//   store_group(sums, group, y)   the 32 columns of one of the groups, in their order
#pragma once

#include "kernels.h"
#include "prefetch.h"
#include "rounding.h"

namespace mobilemoe {

template <typename Inner>
class ExpertOne {
  using V = typename Inner::V;
  using Wide = typename Inner::Wide;
  static constexpr int kRows = 16;
  static constexpr int kWords = kRows / Inner::kTogether * Inner::kWords;
  static constexpr int kGroups = Wide::kGroups;

  // Activations of 16 inputs times their scales, rounded per group of outputs. Groups are folded
  // eight at a time and multiplied kGroups at a time: there is room for some more than there are.
  struct Folded {
    static size_t padded(int row_groups) { return row_groups + 8; }
    static size_t bytes(int row_groups) {
      return padded(row_groups) * sizeof(float) * (kWords + 2 + kGroup);
    }
    Folded(uint8_t* memory, int row_groups) : stride(padded(row_groups)) {
      words = reinterpret_cast<int32_t*>(memory);
      initial = words + kWords * stride;
      steps = reinterpret_cast<float*>(initial + stride);
      sums = steps + stride;
    }

    // Those of row `r` and the kTogether - 1 behind it.
    int32_t* words_of(int r) const {
      return words + r / Inner::kTogether * Inner::kWords * stride;
    }

    const size_t stride;
    int32_t* words;    // [kWords][groups]
    int32_t* initial;  // [groups]
    float* steps;      // [groups]
    float* sums;       // [groups][32]: of all rows so far, in the order of Inner::Sums
  };

 public:
  static size_t scratch_bytes(int outputs) { return Folded::bytes(outputs / kGroup); }

  // The prepared token is the token.
  static size_t bytes(int inputs) { return inputs * sizeof(float); }
  static void prepare(const float* x, int inputs, uint8_t* prepared) {
    std::memcpy(prepared, x, bytes(inputs));
  }

  static void multiply(const ExpertTask& task) {
    const auto* x =
        reinterpret_cast<const float*>(task.prepared + task.rows[0] * task.prepared_stride);
    const int row_groups = task.outputs / kGroup;
    const int begin = task.begin / kGroup, end = task.end / kGroup;
    const size_t row_bytes = static_cast<size_t>(task.outputs) / 2;
    const Folded folded(task.scratch, row_groups);
    const Ahead codes_ahead(task.codes + task.inputs * row_bytes, task.next_codes);
    const Ahead scales_ahead(task.scales + static_cast<size_t>(task.inputs) * row_groups * 2,
                             task.next_scales);
    std::memset(folded.sums, 0, folded.stride * kGroup * sizeof(float));
    for (int r = 0; r < task.inputs; r += kRows) {
      const uint8_t* codes = task.codes + r * row_bytes;
      fold(x + r, task.scales + static_cast<size_t>(r) * row_groups * 2, row_groups, begin, end,
           folded, scales_ahead);
      for (int g = begin; g < end; g += kGroups) {
        const int left = end - g < kGroups ? end - g : kGroups;
        const uint8_t* at = codes + static_cast<size_t>(g) * (kGroup / 2);
        ask_for_next_rows(at, row_bytes, g - begin, end - begin == row_groups, codes_ahead);
        multiply_columns(at, row_bytes, g, g - begin, left, folded);
      }
    }
    for (int g = 0; g < end - begin; ++g) {
      Inner::store_group(folded.sums + static_cast<size_t>(g / kGroups) * kGroups * kGroup,
                         g % kGroups, task.y + (begin + g) * kGroup);
    }
  }

 private:
  // Groups `begin` to end - 1 of the rows whose scales begin at `scales`.
  static void fold(const float* x, const uint8_t* scales, int row_groups, int begin, int end,
                   const Folded& folded, const Ahead& ahead) {
    for (int g = begin; g < end; g += 8) {
      typename V::Floats products[kRows];
      typename V::Floats largest = V::zero();
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* at = scales + (static_cast<size_t>(r) * row_groups + g) * 2;
        products[r] = V::mul(V::load_scales(at, row_groups - g), V::set(x[r]));
        largest = V::larger_size(largest, products[r]);
      }
      // 16 rows of scales ahead, a line for each four of these steps of eight groups.
      for (int line = 0; line < 4; ++line) {
        ahead(scales + static_cast<size_t>(g) * 32 + line * kLine, kRows * row_groups * 2);
      }
      const typename V::Floats limit = V::set(Inner::kLimit);
      const typename V::Floats inverse = V::zero_above(V::div(limit, largest), 3e38f);
      typename V::Ints sum = V::set_ints(0);
      for (int r = 0; r < kRows; r += Inner::kTogether) {
        typename V::Ints q[Inner::kTogether];
        for (int i = 0; i < Inner::kTogether; ++i) {
          q[i] = V::round(V::mul(products[r + i], inverse));
          sum = V::add_ints(sum, q[i]);
        }
        for (int word = 0; word < Inner::kWords; ++word) {
          V::store_ints(folded.words_of(r) + word * folded.stride + g, Inner::pack(q, word));
        }
      }
      V::store_ints(folded.initial + g, Inner::initial(sum));
      // NaN for what is not finite, as in round_group.
      V::store(folded.steps + g, V::add(V::div(largest, limit), V::sub(largest, largest)));
    }
  }

  // Whole rows lie right behind each other and are asked for in the order of memory: in any other
  // it is less than half as fast. Of parts of rows, a line of each.
  static void ask_for_next_rows(const uint8_t* codes, size_t row_bytes, int column_group, bool whole,
                                const Ahead& ahead) {
    const int distance = static_cast<int>(kRows * row_bytes);
    if (whole) {
      const uint8_t* at = codes + static_cast<size_t>(column_group) * (kGroup / 2) * (kRows - 1);
      for (int byte = 0; byte < kRows * kGroups * (kGroup / 2); byte += kLine) {
        ahead(at + byte, distance);
      }
    } else if (column_group * (kGroup / 2) % kLine == 0) {
      for (int row = 0; row < kRows; ++row) ahead(codes + row * row_bytes, distance);
    }
  }

  // 16 rows times up to kGroups groups of columns.
  static void multiply_columns(const uint8_t* codes, size_t row_bytes, int g, int column_group,
                               int groups, const Folded& folded) {
    typename Inner::Sums sums;
    sums.begin(Wide::spread(folded.initial + g));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r += Inner::kTogether) {
      typename Wide::Codes rows[Inner::kTogether];
      for (int i = 0; i < Inner::kTogether; ++i) {
        rows[i] = Wide::load_codes(codes + (r + i) * row_bytes, groups);
      }
      decltype(Wide::spread(folded.words)) words[Inner::kWords];
      for (int word = 0; word < Inner::kWords; ++word) {
        words[word] = Wide::spread(folded.words_of(r) + word * folded.stride + g);
      }
      sums.add(rows, words);
    }
    sums.flush(Wide::spread(folded.steps + g),
               folded.sums + static_cast<size_t>(column_group) * kGroup);
  }
};

}  // namespace mobilemoe
