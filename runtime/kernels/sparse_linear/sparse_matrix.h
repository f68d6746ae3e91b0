#ifndef SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_MATRIX_H_
#define SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_MATRIX_H_
// A matrix without what a pruner dropped, packed to be multiplied with (sparse_linear.h has what
// that computes).
//
//   layout     memory of a weight, of its kept share d    good for
//   kBitmap    d values and 1 bit                         what `wanda`, `magnitude` and the like
//   leave kNofM      N/M values and 1 bit                       2:4 and the like kBlock     d
//   values                                   blocks of 16 columns and more
//
// N:M keeps a bit a weight and no indices: 2:4 takes 4 bits a group either way, 4:8 8 bits against
// 12. From which density on it pays is measured: tests/bench/README.md, *Sparse products*.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/api/dtype.h"
#include "sluice/api/router.h"
#include "sluice/api/tensor_view.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/api/workspace.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_linear.h"

SLUICE_BEGIN_NAMESPACE
struct SparseLayout {
  kernels::SparsePattern pattern = kernels::SparsePattern::kBitmap;
  DType type = DType::kF32;                  // of the values: kF32, kBF16 or kF16
  int64_t n = 2, m = 4;                      // kNofM; M divides 16
  int64_t block_rows = 16, block_cols = 16;  // kBlock; columns a multiple of 16, both at most 64
};

class SparseMatrix {
 public:
  // What is not 0 is kept; of kBlock, blocks that hold such a weight, whole. O(rows cols).
  static absl::StatusOr<SparseMatrix> Pack(MatrixView<const float> w, const SparseLayout& layout) {
    return PackKept(w, layout, nullptr, [&](int64_t r, int64_t c) { return w.row(r)[c] != 0; });
  }
  // What `mask` keeps, 0 or not. Errors: another shape, more than N of M, a block kept in part.
  static absl::StatusOr<SparseMatrix> Pack(MatrixView<const float> w, const Mask& mask,
                                           const SparseLayout& layout) {
    if (mask.rows() != w.rows || mask.cols() != w.cols)
      return absl::InvalidArgumentError(absl::StrCat("sparse matrix: mask [", mask.rows(), ", ",
                                                     mask.cols(), "] for weights [", w.rows, ", ",
                                                     w.cols, "]"));
    return PackKept(w, layout, &mask, [&](int64_t r, int64_t c) { return mask.kept(r, c); });
  }

  int64_t rows() const { return view_.rows; }
  int64_t cols() const { return view_.cols; }
  // Weights that are multiplied.
  int64_t kept() const { return kept_; }
  double density() const {
    const int64_t all = rows() * cols();
    return all == 0 ? 0 : static_cast<double>(kept_) / static_cast<double>(all);
  }
  // Of all that a product reads of it.
  int64_t bytes() const {
    const size_t words = bits_.size() + begin_.size();
    return static_cast<int64_t>(values_.bytes() + words * sizeof(uint64_t) +
                                block_col_.size() * sizeof(int32_t));
  }
  kernels::SparseView view() const {
    kernels::SparseView v = view_;
    v.values = values_.data();
    v.bits = bits_.data();
    v.begin = begin_.data();
    v.block_col = block_col_.data();
    return v;
  }

  // Of MatMul with n rows on so many workers.
  size_t workspace_bytes(int64_t n, int workers) const {
    if (n < kPanelFrom) return 0;
    return static_cast<size_t>(Panels(n) * PanelFloats() + workers * kernels::kSparsePanelScratch) *
           sizeof(float);
  }
  // y [n, rows] (+)= x [n, cols] W^T. The bits do not depend on the threads; those of a row of x
  // not on the others, but on whether there are kPanelFrom of them. O(n (kept + cols / 16)).
  void MatMul(MatrixView<const float> x, MatrixView<float> y, bool accumulate,
              const RunContext& ctx) const {
    SLUICE_DCHECK(x.cols == cols() && y.cols == rows() && y.rows == x.rows);
    InlineExecutor alone;
    Executor& executor = ctx.executor != nullptr ? *ctx.executor : alone;
    const kernels::SparseView w = view();
    const int64_t piece = Piece();
    const int64_t pieces = (rows() + piece - 1) / piece;
    if (x.rows < kPanelFrom) {
      executor.ParallelFor(pieces, 1, [&](int64_t begin, int64_t end, int) {
        kernels::SparseGemv(w, begin * piece, std::min(end * piece, rows()), x.data, x.row_stride,
                            x.rows, y.data, y.row_stride, accumulate);
      });
      return;
    }

    float* panels = ctx.workspace.At<float>(0);
    float* scratch = panels + Panels(x.rows) * PanelFloats();
    const auto rows_of = [&](int64_t p) {
      return std::min(kernels::kSparsePanel, x.rows - p * kernels::kSparsePanel);
    };
    executor.ParallelFor(Panels(x.rows), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; ++p)
        kernels::SparsePack(x.row(p * kernels::kSparsePanel), x.row_stride, rows_of(p), cols(),
                            panels + p * PanelFloats());
    });
    executor.ParallelFor(Panels(x.rows) * pieces, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t p = i / pieces;
        const int64_t first = i % pieces * piece;
        kernels::SparsePanel(w, first, std::min(first + piece, rows()), panels + p * PanelFloats(),
                             rows_of(p), y.row(p * kernels::kSparsePanel), y.row_stride, accumulate,
                             scratch + worker * kernels::kSparsePanelScratch);
      }
    });
  }

  // Rows of x from which on MatMul works by panels.
  static constexpr int64_t kPanelFrom = 8;

 private:
  static int64_t Panels(int64_t n) {
    return (n + kernels::kSparsePanel - 1) / kernels::kSparsePanel;
  }
  int64_t PanelFloats() const { return cols() * kernels::kSparsePanel; }
  // Rows of W that are multiplied at once, whatever the number of threads.
  int64_t Piece() const {
    const bool blocks = view_.pattern == kernels::SparsePattern::kBlock;
    const int64_t unit = blocks ? view_.block_rows : 1;
    return kernels::kSparseStrip / unit * unit;
  }

  static absl::Status Bad(const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("sparse matrix: ", what));
  }
  static absl::Status Check(MatrixView<const float> w, const SparseLayout& l) {
    constexpr int64_t kMost = int64_t{1} << 40;
    if (w.rows < 0 || w.cols < 0 || (w.cols > 0 && w.rows > kMost / w.cols) ||
        w.row_stride < w.cols || (w.empty() && w.rows * w.cols > 0))
      return Bad(absl::StrCat("weights [", w.rows, ", ", w.cols, "] of row stride ", w.row_stride,
                              w.empty() ? ", without data" : "", "; allowed 2^40 weights"));
    if (l.type != DType::kF32 && l.type != DType::kBF16 && l.type != DType::kF16)
      return Bad(absl::StrCat("values of type ", DTypeName(l.type), "; allowed f32, bf16, f16"));
    if (l.pattern == kernels::SparsePattern::kNofM) {
      if (l.m < 1 || kernels::kSparseChunk % l.m != 0 || l.n < 1 || l.n > l.m)
        return Bad(absl::StrCat(l.n, ":", l.m, "; allowed 1 <= N <= M, M a divisor of ",
                                kernels::kSparseChunk));
      if (w.cols % l.m != 0)
        return Bad(absl::StrCat("width ", w.cols, " is no multiple of M = ", l.m));
    }
    if (l.pattern == kernels::SparsePattern::kBlock) {
      if (l.block_rows < 1 || l.block_rows > kernels::kSparsePanel || l.block_cols < 1 ||
          l.block_cols > kernels::kSparsePanel || l.block_cols % kernels::kSparseChunk != 0)
        return Bad(absl::StrCat("blocks of [", l.block_rows, ", ", l.block_cols,
                                "]; allowed at most ", kernels::kSparsePanel,
                                " each way, columns a multiple of ", kernels::kSparseChunk));
      if (w.rows % l.block_rows != 0 || w.cols % l.block_cols != 0)
        return Bad(absl::StrCat("blocks of [", l.block_rows, ", ", l.block_cols, "] do not tile [",
                                w.rows, ", ", w.cols, "]"));
    }
    return absl::OkStatus();
  }

  template <class Kept>
  static absl::StatusOr<SparseMatrix> PackKept(MatrixView<const float> w, const SparseLayout& l,
                                               const Mask* mask, const Kept& kept) {
    SLUICE_RETURN_IF_ERROR(Check(w, l));
    SparseMatrix out;
    out.view_.pattern = l.pattern;
    out.view_.type = l.type;
    out.view_.rows = w.rows;
    out.view_.cols = w.cols;
    switch (l.pattern) {
      case kernels::SparsePattern::kBitmap:
        out.PackBitmap(w, kept);
        break;
      case kernels::SparsePattern::kNofM:
        SLUICE_RETURN_IF_ERROR(out.PackNofM(w, l, kept));
        break;
      case kernels::SparsePattern::kBlock:
        SLUICE_RETURN_IF_ERROR(out.PackBlocks(w, l, mask != nullptr, kept));
        break;
    }
    return out;
  }
  template <class Kept>
  void PackBitmap(MatrixView<const float> w, const Kept& kept) {
    const int64_t words = (w.cols + 63) / 64;
    bits_.resize(static_cast<size_t>(w.rows * words));
    int64_t values = 0;
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) values += kept(r, c) ? 1 : 0;
    }
    Reserve(values);
    begin_.push_back(0);
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) {
        if (!kept(r, c)) continue;
        bits_[static_cast<size_t>(r * words + c / 64)] |= uint64_t{1} << (c % 64);
        Put(kept_, w.row(r)[c]);
        ++kept_;
      }
      begin_.push_back(kept_);
    }
  }
  template <class Kept>
  absl::Status PackNofM(MatrixView<const float> w, const SparseLayout& l, const Kept& kept) {
    const int64_t words = (w.cols + 63) / 64;
    const int64_t chunks = (w.cols + kernels::kSparseChunk - 1) / kernels::kSparseChunk;
    view_.chunk_values = kernels::kSparseChunk / l.m * l.n;
    bits_.resize(static_cast<size_t>(w.rows * words));
    Reserve(w.rows * chunks * view_.chunk_values);
    for (int64_t r = 0; r < w.rows; ++r) {
      int64_t at = 0;
      int64_t in_group = 0;
      for (int64_t c = 0; c < w.cols; ++c) {
        const int64_t chunk = r * chunks + c / kernels::kSparseChunk;
        if (c % kernels::kSparseChunk == 0) at = chunk * view_.chunk_values;
        if (c % l.m == 0) in_group = 0;
        if (!kept(r, c)) continue;
        if (++in_group > l.n)
          return Bad(absl::StrCat("row ", r, " keeps more than ", l.n, " of the ", l.m,
                                  " columns from ", c / l.m * l.m));
        bits_[static_cast<size_t>(r * words + c / 64)] |= uint64_t{1} << (c % 64);
        Put(at++, w.row(r)[c]);
        ++kept_;
      }
    }
    return absl::OkStatus();
  }
  template <class Kept>
  absl::Status PackBlocks(MatrixView<const float> w, const SparseLayout& l, bool whole,
                          const Kept& kept) {
    view_.block_rows = l.block_rows;
    view_.block_cols = l.block_cols;
    const int64_t size = l.block_rows * l.block_cols;
    begin_.push_back(0);
    for (int64_t r = 0; r < w.rows; r += l.block_rows) {
      for (int64_t c = 0; c < w.cols; c += l.block_cols) {
        int64_t there = 0;
        for (int64_t i = 0; i < size; ++i)
          there += kept(r + i / l.block_cols, c + i % l.block_cols) ? 1 : 0;
        if (there == 0) continue;
        if (whole && there < size)
          return Bad(absl::StrCat("the block at row ", r, ", column ", c, " keeps ", there, " of ",
                                  size, " weights; allowed all or none"));
        block_col_.push_back(static_cast<int32_t>(c / l.block_cols));
      }
      begin_.push_back(std::ssize(block_col_));
    }

    kept_ = std::ssize(block_col_) * size;
    Reserve(kept_);
    for (int64_t r = 0; r < w.rows; r += l.block_rows) {
      const auto at = static_cast<size_t>(r / l.block_rows);
      for (int64_t b = begin_[at]; b < begin_[at + 1]; ++b) {
        const int64_t c = block_col_[static_cast<size_t>(b)] * l.block_cols;
        for (int64_t i = 0; i < size; ++i)
          Put(b * size + i, w.row(r + i / l.block_cols)[c + i % l.block_cols]);
      }
    }
    return absl::OkStatus();
  }

  // Room for n values. What was in it is gone.
  void Reserve(int64_t n) {
    values_.Resize(static_cast<size_t>(DTypeBytes(view_.type, n + kernels::kSparsePadding)));
  }
  void Put(int64_t i, float x) {
    std::byte* to = values_.data() + DTypeBytes(view_.type, i);
    if (view_.type == DType::kF32) {
      std::memcpy(to, &x, sizeof x);
      return;
    }
    const uint16_t half = view_.type == DType::kBF16 ? F32ToBF16(x) : F32ToF16(x);
    std::memcpy(to, &half, sizeof half);
  }

  kernels::SparseView view_;
  int64_t kept_ = 0;
  OwnedWorkspace values_;
  std::vector<uint64_t> bits_;
  std::vector<int64_t> begin_;
  std::vector<int32_t> block_col_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_MATRIX_H_
