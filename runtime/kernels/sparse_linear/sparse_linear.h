#ifndef SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_LINEAR_H_
#define SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_LINEAR_H_
// y = W x where most of W is gone: only what is kept lies in memory and is multiplied.
// sparse_matrix.h packs matrices and runs these on an executor.
//
// A kept weight is multiplied whatever it is: 0 times an infinity and any product with NaN are NaN,
// as in a dense product. A weight that is not kept contributes nothing, even where x is NaN.
#include <cstdint>

#include "sluice/api/dtype.h"

namespace sluice::kernels {
enum class SparsePattern : uint8_t {
  kBitmap,  // any weights: a bit each, the kept values one behind the other
  kNofM,    // at most N of M neighbours: a bit each, values at places known without counting
  kBlock,   // whole blocks [block_rows, block_cols]
};

// Columns whose values lie together in kNofM.
inline constexpr int64_t kSparseChunk = 16;
// Rows of x that a panel holds, and a block's most rows and columns.
inline constexpr int64_t kSparsePanel = 64;
// Rows of W that SparsePanel keeps sums of at once: every such strip reads the panel once.
inline constexpr int64_t kSparseStrip = 256;
// Elements after the last value that may be read: a word's, where columns end before it does.
inline constexpr int64_t kSparsePadding = 64;

// A packed matrix, borrowed.
struct SparseView {
  SparsePattern pattern = SparsePattern::kBitmap;
  DType type = DType::kF32;  // of the values: kF32, kBF16 or kF16
  int64_t rows = 0, cols = 0;
  const void* values = nullptr;

  // kBitmap, kNofM: [rows, ceil(cols / 64)]; bits beyond the columns are 0.
  const uint64_t* bits = nullptr;
  // kBitmap: [rows + 1], first value of a row. kBlock: [rows / block_rows + 1], first block of a
  // row of blocks.
  const int64_t* begin = nullptr;
  // kNofM: room of a chunk of kSparseChunk columns, in values.
  int64_t chunk_values = 0;

  // kBlock: [blocks], in blocks, ascending in a row of blocks. At most kSparsePanel rows and
  // columns a block, columns a multiple of kSparseChunk.
  const int32_t* block_col = nullptr;
  int64_t block_rows = 1, block_cols = kSparseChunk;
};

// y [n, rows] (+)= x [n, cols] W^T for the rows [begin, end) of W; row strides in elements. Few
// rows of x: W is read once for every four. kBlock: begin and end are multiples of block_rows.
// Every output's bits depend on its own row of x alone. O(n (kept + cols / 16)) a row of W.
void SparseGemv(const SparseView& w, int64_t begin, int64_t end, const float* x, int64_t ldx,
                int64_t n, float* y, int64_t ldy, bool accumulate);

// The same for many rows of x: SparsePack turns up to kSparsePanel of them over (panel: [cols,
// kSparsePanel] floats), SparsePanel multiplies. n: rows of x in the panel. scratch:
// kSparsePanelScratch floats. An output's bits depend on its own row of x alone, but are not those
// of SparseGemv. O(n kept).
inline constexpr int64_t kSparsePanelScratch = (kSparseStrip + kSparsePanel) * kSparsePanel;
void SparsePack(const float* x, int64_t ldx, int64_t n, int64_t cols, float* panel);
void SparsePanel(const SparseView& w, int64_t begin, int64_t end, const float* panel, int64_t n,
                 float* y, int64_t ldy, bool accumulate, float* scratch);
}  // namespace sluice::kernels
#endif  // SLUICE_RUNTIME_KERNELS_SPARSE_LINEAR_SPARSE_LINEAR_H_
