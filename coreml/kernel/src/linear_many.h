// Many tokens times the rows of a linear, with rounded activations. A template of the loops
// (vectors_avx2.h): what is particular to a precision and a CPU is in `Tile`.
//
// Codes of kOutputs rows are unpacked into a panel that stays in the first cache for all tokens,
// of which kTokens at a time are multiplied with it in registers.
//
// Tile:
//   V                       eight floats, for the rounding
//   Value, Code             of rounded activations; of unpacked codes
//   kLimit                  of the rounded activations
//   kTokens, kOutputs       of a tile
//   kLanes                  blocks whose words alternate, see tile_token.h
//   order(q, x)             puts 32 rounded values in the order of a panel's codes
//   initial(q)              with what a sum of the 32 products begins: less what unsigned codes add
//   fill_linear(rows, to)   unpacks a group of kOutputs rows
//   multiply<n, scaled>(x, panel, blocks, sums)   n tokens times a panel
#pragma once

#include "kernels.h"
#include "prefetch.h"
#include "rounding.h"
#include "tile_token.h"

namespace mobilemoe {

// Unpacked codes of some outputs in a thread's scratch.
template <typename Code, int kOutputs>
struct Panel {
  Code* codes;    // [blocks of 32 inputs][32 x kOutputs], in the order of the tile
  float* scales;  // [blocks][kOutputs]: of linears; experts have theirs in the activations

  static size_t bytes(int inputs) {
    return static_cast<size_t>(inputs) * kOutputs * sizeof(Code) +
           static_cast<size_t>(inputs) / kGroup * kOutputs * sizeof(float);
  }
  Panel(uint8_t* memory, int inputs)
      : codes(reinterpret_cast<Code*>(memory)),
        scales(reinterpret_cast<float*>(memory + static_cast<size_t>(inputs) * kOutputs *
                                                     sizeof(Code))) {}
};

// Tiles at the end have fewer tokens than Tile::kTokens.
template <typename Tile, bool kScaled, int kTokens = Tile::kTokens>
void multiply_tile(int tokens, const TileToken* x,
                   const Panel<typename Tile::Code, Tile::kOutputs>& panel, int blocks,
                   float (*sums)[Tile::kOutputs]) {
  if constexpr (kTokens > 1) {
    if (tokens < kTokens) {
      return multiply_tile<Tile, kScaled, kTokens - 1>(tokens, x, panel, blocks, sums);
    }
  }
  Tile::template multiply<kTokens, kScaled>(x, panel, blocks, sums);
}

template <typename Tile>
class LinearMany {
  using Value = typename Tile::Value;

  static constexpr int kLanes = Tile::kLanes;
  static constexpr int kWords = kGroup * sizeof(Value) / 4;  // of a block

  static size_t padded(int columns) { return padded_blocks<kLanes>(columns / kGroup); }
  static TileToken token(const uint8_t* prepared, int columns) {
    const uint8_t* steps = prepared + padded(columns) * kWords * 4;
    return {prepared, reinterpret_cast<const float*>(steps),
            reinterpret_cast<const int32_t*>(steps) + padded(columns)};
  }

 public:
  // Of a prepared token: words, steps, initial sums.
  static size_t bytes(int columns) {
    return padded(columns) * (kWords * 4 + sizeof(float) + sizeof(int32_t));
  }
  static size_t scratch_bytes(int columns) {
    return Panel<typename Tile::Code, Tile::kOutputs>::bytes(columns);
  }

  static void prepare(const float* x, int columns, uint8_t* prepared) {
    auto* words = reinterpret_cast<uint32_t*>(prepared);
    auto* steps = reinterpret_cast<float*>(words + padded(columns) * kWords);
    auto* initial = reinterpret_cast<int32_t*>(steps + padded(columns));
    for (int g = 0; g < columns / kGroup; ++g) {
      int16_t q[kGroup];
      steps[g] = round_group<typename Tile::V>(x + g * kGroup, Tile::kLimit, q);
      initial[g] = Tile::initial(q);
      Value ordered[kGroup];
      Tile::order(q, ordered);
      uint32_t* to = words + g / kLanes * (kWords * kLanes) + g % kLanes;
      for (int i = 0; i < kWords; ++i) {
        std::memcpy(to + i * kLanes, ordered + i * (4 / sizeof(Value)), 4);
      }
    }
  }

  static void multiply(const LinearTask& task) {
    const int groups = task.columns / kGroup;
    const Panel<typename Tile::Code, Tile::kOutputs> panel(task.scratch, task.columns);
    for (int row = task.begin; row < task.end; row += Tile::kOutputs) {
      fill(task, row, panel);
      const int rows = task.end - row < Tile::kOutputs ? task.end - row : Tile::kOutputs;
      for (int t = 0; t < task.count; t += Tile::kTokens) {
        const int tokens = task.count - t < Tile::kTokens ? task.count - t : Tile::kTokens;
        TileToken x[Tile::kTokens];
        for (int i = 0; i < tokens; ++i) {
          x[i] = token(task.prepared + (t + i) * task.prepared_stride, task.columns);
        }
        float sums[Tile::kTokens][Tile::kOutputs];
        multiply_tile<Tile, true>(tokens, x, panel, groups, sums);
        for (int i = 0; i < tokens; ++i) {
          std::memcpy(task.y + (t + i) * task.y_stride + row, sums[i], rows * sizeof(float));
        }
      }
    }
  }

 private:
  // Rows `row` on; behind the last row of the task the last one is taken again.
  static void fill(const LinearTask& task, int row,
                   const Panel<typename Tile::Code, Tile::kOutputs>& panel) {
    const int groups = task.columns / kGroup;
    const size_t row_bytes = static_cast<size_t>(groups) * (kGroup / 2);
    const uint8_t* codes[Tile::kOutputs];
    const uint8_t* scales[Tile::kOutputs];
    for (int r = 0; r < Tile::kOutputs; ++r) {
      const size_t index = row + r < task.end ? row + r : task.end - 1;
      codes[r] = task.codes + index * row_bytes;
      scales[r] = task.scales + index * groups * 2;
    }
    for (int g = 0; g < groups; ++g) {
      Tile::fill_linear(codes, g * (kGroup / 2),
                        panel.codes + static_cast<size_t>(g) * kGroup * Tile::kOutputs);
      for (int r = 0; r < Tile::kOutputs; ++r) {
        panel.scales[g * Tile::kOutputs + r] = Tile::V::scale_of(scales[r] + g * 2);
        // The rows behind these, which the next task most often has.
        const uint8_t* next = codes[r] + g * (kGroup / 2) + Tile::kOutputs * row_bytes;
        if (g * (kGroup / 2) % kLine == 0) prefetch(next);
      }
    }
  }
};

}  // namespace mobilemoe
