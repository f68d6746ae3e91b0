#include "sluice/runtime/host/sparse_weights.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "sluice/api/check.h"
#include "sluice/api/dtype.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
namespace {
using kernels::SparsePattern;

// The greatest share of kept weights with which one row is multiplied faster than with all of them,
// with a margin for machines whose memory is faster beside their cores.
double MostKept(const SparseLayout& layout) {
  return layout.pattern == SparsePattern::kBlock ? 0.6 : 0.8;
}

absl::StatusOr<SparseLayout> ReadLayout(const std::string& how) {
  SparseLayout layout;
  if (how == "bitmap") return layout;
  const auto two = [&](char between, int64_t& first, int64_t& second) {
    const std::vector<std::string> parts = absl::StrSplit(how, between);
    return parts.size() == 2 && absl::SimpleAtoi(parts[0], &first) &&
           absl::SimpleAtoi(parts[1], &second);
  };
  if (two(':', layout.n, layout.m)) {
    layout.pattern = SparsePattern::kNofM;
  } else if (two('x', layout.block_rows, layout.block_cols)) {
    layout.pattern = SparsePattern::kBlock;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("sparse weights '", how,
                     "'; allowed: off, bitmap, N:M (N of M neighbours) or RxC (blocks)"));
  }
  // What is wrong with the layout itself is wrong for a matrix of nothing.
  SLUICE_RETURN_IF_ERROR(SparseMatrix::Pack({nullptr, 0, 0, 0}, layout).status());
  return layout;
}

struct Plain {
  const float* data;
  int64_t rows, cols;

  // Whether every weight is one of half precision: those of a file in that type are.
  bool AreHalves() const {
    return std::all_of(data, data + rows * cols,
                       [](float x) { return F16ToF32(F32ToF16(x)) == x; });
  }
};
std::vector<Plain> MatricesOf(const Model& model) {
  const ModelShape& s = model.shape;
  const int64_t q = s.heads * s.head_dim;
  const int64_t kv = s.kv_heads * s.head_dim;
  std::vector<Plain> all;
  for (const Layer& layer : model.layers) {
    all.push_back({layer.qkv.data(), q + 2 * kv, s.width});
    all.push_back({layer.attn_out.data(), s.width, q});
    for (int64_t e = 0; e < std::max<int64_t>(1, s.experts); ++e) {
      all.push_back({layer.GateUp(s, e), 2 * s.ffn, s.width});
      all.push_back({layer.Down(s, e), s.width, s.ffn});
    }
  }
  return all;
}
}  // namespace

absl::StatusOr<SparseWeights> SparseWeights::Create(const Model& model, const std::string& how) {
  SparseWeights out;
  if (how == "off") return out;
  SLUICE_ASSIGN_OR_RETURN(SparseLayout layout, ReadLayout(how));
  double least = 1;
  std::string other;  // why the last one was not of the pattern
  for (const Plain& m : MatricesOf(model)) {
    ++out.held_.of;
    layout.type = m.AreHalves() ? DType::kF16 : DType::kF32;
    auto packed = SparseMatrix::Pack({m.data, m.rows, m.cols, m.cols}, layout);
    if (!packed.ok()) {
      other = std::string(packed.status().message());
      continue;
    }
    least = std::min(least, packed->density());
    if (packed->density() > MostKept(layout)) continue;
    ++out.held_.matrices;
    out.held_.weights += m.rows * m.cols;
    out.held_.kept += packed->kept();
    out.held_.bytes += packed->bytes();
    out.packed_.emplace(m.data, *std::move(packed));
  }
  if (out.held_.matrices > 0) return out;
  return absl::InvalidArgumentError(absl::StrCat(
      "sparse weights '", how, "': none of the layers' ", out.held_.of,
      " matrices is sparse enough", other.empty() ? "" : absl::StrCat(" (", other, ")"),
      "; the sparsest of this pattern keeps ", least, " of its weights, allowed: at most ",
      MostKept(layout), ", or off"));
}

const SparseMatrix* SparseWeights::Find(const float* w, int64_t rows, int64_t n) const {
  const auto at = packed_.find(w);
  if (at == packed_.end() || at->second.rows() != rows) return nullptr;
  const bool few = n < SparseMatrix::kPanelFrom;
  const bool blocks = at->second.view().pattern == SparsePattern::kBlock;
  const bool faster = blocks ? n == 1 || !few : few;
  return faster ? &at->second : nullptr;
}

size_t SparseWeights::workspace_bytes(int64_t n, int workers) const {
  size_t most = 0;
  for (const auto& [data, matrix] : packed_) {
    if (Find(data, matrix.rows(), n) != nullptr)
      most = std::max(most, matrix.workspace_bytes(n, workers));
  }
  return most;
}
}  // namespace host
SLUICE_END_NAMESPACE
