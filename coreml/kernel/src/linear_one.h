// One token times the rows of a linear, with rounded activations. A template of the loops
// (vectors_avx2.h): what is particular to a precision and a CPU is in `Inner`.
//
// Memory is what bounds this: each weight is used once. Four rows are walked together.
//
// Inner:
//   V                       eight floats, for the rounding
//   Wide                    the vectors of the product: 4 lanes for each of kGroups groups
//   kLimit                  of the rounded activations
//   Block                   rounded activations of kGroups groups, in the order of the codes
//   put(q, part, &block)    puts 32 rounded values in their place
//   multiply(codes, block)  sums of 8 products in each lane, less what unsigned codes add
#pragma once

#include "kernels.h"
#include "prefetch.h"
#include "rounding.h"

namespace mobilemoe {

template <typename Inner>
class LinearOne {
  using V = typename Inner::V;
  using Wide = typename Inner::Wide;
  using Block = typename Inner::Block;
  static constexpr int kRows = 4;
  static constexpr int kGroups = Wide::kGroups;       // of a load of codes
  static constexpr int kScales = 4 * Wide::kGroups;   // groups whose scales come in one load
  static constexpr int kLoadBytes = kGroups * kGroup / 2;

  static int padded(int groups) { return (groups + kScales - 1) / kScales * kScales; }
  static size_t steps_offset(int columns) {
    return padded(columns / kGroup) / kGroups * sizeof(Block);
  }

 public:
  // Of a prepared token: blocks, then steps.
  static size_t bytes(int columns) {
    return steps_offset(columns) + padded(columns / kGroup) * sizeof(float);
  }

  static void prepare(const float* x, int columns, uint8_t* prepared) {
    auto* blocks = reinterpret_cast<Block*>(prepared);
    auto* steps = reinterpret_cast<float*>(prepared + steps_offset(columns));
    const int groups = columns / kGroup;
    for (int g = 0; g < padded(groups); ++g) {
      int16_t q[kGroup] = {};
      steps[g] = g < groups ? round_group<V>(x + g * kGroup, Inner::kLimit, q) : 0.0f;
      Inner::put(q, g % kGroups, blocks + g / kGroups);
    }
  }

  static void multiply(const LinearTask& task) {
    int row = task.begin;
    for (; row + kRows <= task.end; row += kRows) rows<kRows>(task, row);
    for (; row < task.end; ++row) rows<1>(task, row);
  }

 private:
  template <int kRowCount>
  static void rows(const LinearTask& task, int row) {
    const int groups = task.columns / kGroup;
    const size_t row_bytes = static_cast<size_t>(groups) * (kGroup / 2);
    const auto* blocks = reinterpret_cast<const Block*>(task.prepared);
    const auto* steps = reinterpret_cast<const float*>(task.prepared + steps_offset(task.columns));
    const uint8_t* codes = task.codes + row * row_bytes;
    const uint8_t* scales = task.scales + static_cast<size_t>(row) * groups * 2;
    const Ahead codes_ahead(task.codes + task.end * row_bytes, task.next_codes);
    const Ahead scales_ahead(task.scales + static_cast<size_t>(task.end) * groups * 2,
                             task.next_scales);
    typename Wide::Floats sums[kRowCount];
    for (auto& sum : sums) sum = Wide::zero();
    for (int g = 0; g < groups; g += kScales) {
      const int left = groups - g < kScales ? groups - g : kScales;
      const typename Wide::Floats step = Wide::load(steps + g);
      typename Wide::Floats scale[kRowCount];
      for (int r = 0; r < kRowCount; ++r) {
        const uint8_t* at = scales + (static_cast<size_t>(r) * groups + g) * 2;
        scale[r] = Wide::mul(Wide::load_scales(at, left), step);
        scales_ahead(at, kPrefetchBytes / 8);
      }
      for (int i = 0; i * kGroups < left; ++i) {
        const Block& block = blocks[g / kGroups + i];
        const auto lanes = Wide::lanes_of(i);
        for (int r = 0; r < kRowCount; ++r) {
          const uint8_t* at = codes + r * row_bytes + (g / kGroups + i) * kLoadBytes;
          // In the order of memory, as if the rows' loads lay behind each other.
          if (r * kLoadBytes % kLine == 0) {
            codes_ahead(codes + ((g / kGroups + i) * kRowCount + r) * kLoadBytes);
          }
          const auto bytes = Wide::load_codes(at, left - i * kGroups);
          sums[r] = Wide::fma(Wide::to_floats(Inner::multiply(bytes, block)),
                              Wide::spread(scale[r], lanes), sums[r]);
        }
      }
    }
    for (int r = 0; r < kRowCount; ++r) task.y[row + r] = Wide::sum(sums[r]);
  }
};

}  // namespace mobilemoe
