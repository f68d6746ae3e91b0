#ifndef SLUICE_ROUTERS_EXPERT_SPT_SPLIT_H_
#define SLUICE_ROUTERS_EXPERT_SPT_SPLIT_H_
// A dense feed-forward network made into one whose blocks are routed, without training: its neurons
// in the order of blocks (clusters.h), and a router fitted to what the blocks of a token add (ours;
// SPT, arXiv 2312.10365, trains both). Offline.
//
//   SCORE   a_b = |W2[:, b] h_b|, what block b adds to a token's output
//   router  least squares of log a from the network's input
//
// A logarithm, since what counts is which blocks add most, and sizes have a long tail.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/tensor_view.h"
#include "sluice/routers/common/linear_fit.h"

SLUICE_BEGIN_NAMESPACE
namespace expert {
// Row `order[i]` of w [rows, cols] becomes row i. O(rows cols).
inline std::vector<float> RowsInOrder(MatrixView<const float> w, absl::Span<const int32_t> order) {
  std::vector<float> out;
  out.reserve(order.size() * static_cast<size_t>(w.cols));
  for (int32_t from : order) out.insert(out.end(), w.row(from), w.row(from) + w.cols);
  return out;
}
// Column `order[j]` of w [rows, cols] becomes column j. O(rows cols).
inline std::vector<float> ColumnsInOrder(MatrixView<const float> w,
                                         absl::Span<const int32_t> order) {
  std::vector<float> out;
  out.reserve(static_cast<size_t>(w.rows) * order.size());
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int32_t from : order) out.push_back(w.row(r)[from]);
  }
  return out;
}

// What every block adds to every token's output: y [tokens, blocks, dim], block b's part of
// down h with activity h [tokens, neurons], down [dim, neurons], neurons in the order of blocks.
// O(tokens neurons dim).
inline std::vector<float> BlockOutputs(MatrixView<const float> activity,
                                       MatrixView<const float> down,
                                       absl::Span<const int32_t> order, int64_t blocks) {
  const std::vector<float> h = ColumnsInOrder(activity, order);
  const std::vector<float> w = ColumnsInOrder(down, order);
  const int64_t neurons = down.cols;
  const int64_t block = neurons / blocks;
  std::vector<float> y(static_cast<size_t>(activity.rows * blocks * down.rows));
  std::vector<float> scratch(static_cast<size_t>(kernels::GemmScratchFloats(block)));
  for (int64_t b = 0; b < blocks; ++b)
    kernels::GemmNT(h.data() + b * block, neurons, w.data() + b * block, neurons, activity.rows,
                    down.rows, block, y.data() + b * down.rows, blocks * down.rows, scratch.data());
  return y;
}

// |y_b|^2 of every token, [tokens, blocks].
inline std::vector<double> BlockEnergies(absl::Span<const float> outputs, int64_t dim) {
  std::vector<double> energy(outputs.size() / static_cast<size_t>(dim));
  for (size_t i = 0; i < energy.size(); ++i) {
    for (int64_t c = 0; c < dim; ++c) {
      const auto y = static_cast<double>(outputs[i * static_cast<size_t>(dim) + c]);
      energy[i] += y * y;
    }
  }
  return energy;
}

// The router [dim, blocks] of blocks with these energies [tokens, blocks], read from the network's
// input x [tokens, dim]. Errors as LinearFit's; InvalidArgument where sizes do not fit.
inline absl::StatusOr<Linear> FitBlockRouter(MatrixView<const float> x,
                                             absl::Span<const double> energies, int64_t blocks,
                                             double ridge = 1e-3) {
  if (blocks < 1 || std::ssize(energies) != x.rows * blocks)
    return absl::InvalidArgumentError(
        absl::StrCat(energies.size(), " energies of ", x.rows, " tokens and ", blocks, " blocks"));
  constexpr double kLeast = 1e-20;  // of a block that adds nothing
  LinearFit fit(x.cols, blocks);
  std::vector<double> wanted(static_cast<size_t>(blocks));
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t b = 0; b < blocks; ++b)
      wanted[b] = 0.5 * std::log(energies[t * blocks + b] + kLeast);
    fit.Add(x.row(t), wanted.data());
  }
  return fit.Solve(ridge);
}
}  // namespace expert
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_SPT_SPLIT_H_
