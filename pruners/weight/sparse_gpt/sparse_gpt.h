#ifndef SLUICE_PRUNERS_WEIGHT_SPARSE_GPT_SPARSE_GPT_H_
#define SLUICE_PRUNERS_WEIGHT_SPARSE_GPT_SPARSE_GPT_H_
// SparseGPT: prunes a matrix from left to right, and what each weight leaves undone the weights to
// its right take over as far as the inputs are correlated.
//
//   PREP    H = X^T X, its diagonal raised by damp times its mean; U upper with U^T U = H^-1
//   SCORE   (w_c / U_cc)^2, w as it stands when its block of columns begins (N:M: its group)
//   SELECT  every block of columns by itself gives its share; N:M every group
//   REFINE  column by column: w_k -= w_c / U_cc U_ck for the columns k > c, of every w_c that goes
//
// Prune gives the mask; Apply, which makes up for what any mask drops, the weights. A column that
// saw no input (H_cc = 0) is worth nothing and comes out of Apply as 0. Shares are exact: the
// blocks up to column c give floor(total c / cols), a row or, with scope layer, all rows together,
// as is published; there `<=` a threshold drops ties too, here ties keep the lowest index. What the
// start mask dropped goes and is made up for; a block that has lost more than its share keeps what
// it has. Weights that are no numbers are refused. O(cols^3 + rows cols^2).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/pruners/common/inverse_root.h"
#include "sluice/pruners/common/select.h"

SLUICE_BEGIN_NAMESPACE
namespace weight {
class SparseGpt {
 public:
  static constexpr PrunerTraits kTraits = {
      .name = "weight/sparse_gpt",
      .title = "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
      .arxiv = "2301.00774",
      .reads = kPrunerReadsGram,
      .kinds = 0x7,
      .scopes = 0x3,
      .updates = true,
  };
  struct Config {
    int64_t block = 128;
    double damp = 0.01;
    template <class V>
    void VisitFields(V&& v) {
      v("block", block, Range<int64_t>{1, 1 << 20},
        "columns chosen among together; N:M rounds up to whole groups");
      v("damp", damp, Range<double>{1e-9, 1e3}, "of the mean of the diagonal, added to it");
    }
  };
  static absl::StatusOr<SparseGpt> Create(const Config& c) {
    SparseGpt p;
    p.config_ = c;
    return p;
  }

  absl::Status Prune(const PruneInputs& in, const RunContext& ctx, Mask& out) const {
    SLUICE_ASSIGN_OR_RETURN(Sweep sweep, Begin(in, ctx));
    const bool n_of_m = in.target.kind == PruneTarget::Kind::kNofM;
    sweep.group = n_of_m ? in.target.m : 0;
    const int64_t block =
        n_of_m ? (config_.block + in.target.m - 1) / in.target.m * in.target.m : config_.block;
    for (int64_t b = 0; b < in.weights.cols; b += block) {
      const int64_t e = std::min(in.weights.cols, b + block);
      if (!n_of_m) ChooseBlock(in, sweep, b, e, out);
      sweep.Run(b, e, out, [&](int64_t r, int64_t c) { ChooseGroup(in, sweep, r, c, out); });
    }
    return absl::OkStatus();
  }

  absl::Status Apply(const PruneInputs& in, const Mask& mask, const RunContext& ctx,
                     MatrixView<float> out) const {
    SLUICE_ASSIGN_OR_RETURN(Sweep sweep, Begin(in, ctx));
    Mask kept = mask;
    for (int64_t b = 0; b < in.weights.cols; b += config_.block)
      sweep.Run(b, std::min(in.weights.cols, b + config_.block), kept, [](int64_t, int64_t) {});
    for (int64_t r = 0; r < out.rows; ++r) {
      for (int64_t c = 0; c < out.cols; ++c) out.row(r)[c] = static_cast<float>(sweep.row(r)[c]);
    }
    return absl::OkStatus();
  }

 private:
  static size_t At(int64_t i) { return static_cast<size_t>(i); }

  // The weights as they stand, and what moves them.
  struct Sweep {
    int64_t rows = 0, cols = 0, group = 0;
    std::vector<double> w;     // [rows, cols]
    std::vector<double> root;  // U [cols, cols]
    Executor* executor = nullptr;
    std::shared_ptr<InlineExecutor> alone = std::make_shared<InlineExecutor>();

    double* row(int64_t r) { return w.data() + r * cols; }
    const double* u(int64_t c) const { return root.data() + c * cols; }
    double Worth(int64_t r, int64_t c) {
      const double x = row(r)[c] / u(c)[c];
      return x * x;
    }
    // Columns [b, e): drops what `mask` drops and moves the columns to the right. `at_group(r, c)`
    // is called as group c of row r begins, where there are groups, and may still change them.
    void Run(int64_t b, int64_t e, Mask& mask,
             absl::FunctionRef<void(int64_t r, int64_t c)> at_group) {
      executor->ParallelFor(rows, 4, [&](int64_t first, int64_t last, int) {
        std::vector<double> undone(At(e - b));
        for (int64_t r = first; r < last; ++r) {
          double* x = row(r);
          for (int64_t c = b; c < e; ++c) {
            if (group > 0 && c % group == 0) at_group(r, c);
            undone[At(c - b)] = mask.kept(r, c) ? 0 : x[c] / u(c)[c];
            if (mask.kept(r, c)) continue;
            Take(x, undone[At(c - b)], c, c + 1, e);
            x[c] = 0;
          }
          for (int64_t c = b; c < e; ++c) Take(x, undone[At(c - b)], c, e, cols);
        }
      });
    }
    void Take(double* x, double undone, int64_t c, int64_t from, int64_t to) const {
      if (undone == 0) return;
      const double* by = u(c);
      for (int64_t k = from; k < to; ++k) x[k] -= undone * by[k];
    }
  };

  absl::StatusOr<Sweep> Begin(const PruneInputs& in, const RunContext& ctx) const {
    const MatrixView<const float>& w = in.weights;
    Sweep s;
    s.rows = w.rows;
    s.cols = w.cols;
    s.executor = ctx.executor != nullptr ? ctx.executor : s.alone.get();
    s.w.resize(At(w.rows * w.cols));
    const MatrixView<const float>& gram = in.stats.gram;
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) {
        if (!std::isfinite(w.row(r)[c]))
          return absl::InvalidArgumentError(absl::StrCat("weight/sparse_gpt: the weight [", r, ", ",
                                                         c, "] is ", w.row(r)[c],
                                                         "; allowed: finite numbers"));
        s.row(r)[c] = gram.row(c)[c] > 0 ? static_cast<double>(w.row(r)[c]) : 0;
      }
    }

    std::vector<double> h(At(w.cols * w.cols));
    double trace = 0;
    int64_t alive = 0;
    for (int64_t i = 0; i < w.cols; ++i) {
      for (int64_t j = 0; j < w.cols; ++j)
        h[At(i * w.cols + j)] = static_cast<double>(gram.row(i)[j]);
      trace += h[At(i * w.cols + i)];
      alive += gram.row(i)[i] > 0;
    }
    const double mean = alive > 0 ? trace / static_cast<double>(alive) : 1;
    for (int64_t i = 0; i < w.cols; ++i) {
      double& diagonal = h[At(i * w.cols + i)];
      if (diagonal == 0) diagonal = mean;
      diagonal += config_.damp * mean;
    }
    SLUICE_ASSIGN_OR_RETURN(s.root, pruning::InverseRoot(std::move(h), w.cols, *s.executor));
    return s;
  }

  // How many of `rows` rows' columns [0, c) stay.
  static int64_t Share(const PruneTarget& t, int64_t rows, int64_t cols, int64_t c) {
    const int64_t gone = rows * cols - pruning::Stay(t, rows * cols);
    return rows * c - (gone / cols * c + gone % cols * c / cols);
  }

  static void ChooseBlock(const PruneInputs& in, Sweep& s, int64_t b, int64_t e, Mask& out) {
    const bool layer = in.target.scope == PruneTarget::Scope::kLayer;
    const int64_t together = layer ? s.rows : 1;
    PruneTarget each = in.target;
    each.kind = PruneTarget::Kind::kCount;
    each.count = Share(in.target, together, s.cols, e) - Share(in.target, together, s.cols, b);
    s.executor->ParallelFor(
        s.rows / std::max<int64_t>(1, together), 8, [&](int64_t first, int64_t last, int) {
          Choice choice;
          for (int64_t i = first; i < last; ++i)
            Choose(in, s, {i * together, (i + 1) * together, b, e}, each, choice, out);
        });
  }
  static void ChooseGroup(const PruneInputs& in, Sweep& s, int64_t r, int64_t c, Mask& out) {
    PruneTarget each = in.target;
    each.kind = PruneTarget::Kind::kCount;
    each.count = in.target.n;
    Choice choice;
    Choose(in, s, {r, r + 1, c, c + in.target.m}, each, choice, out);
  }

  struct Choice {
    std::vector<double> score;
    std::vector<int64_t> order;
    std::vector<uint8_t> kept;
  };
  struct Area {
    int64_t row, row_end, col, col_end;
  };
  static void Choose(const PruneInputs& in, Sweep& s, const Area& a, const PruneTarget& each,
                     Choice& choice, Mask& out) {
    choice.score.clear();
    for (int64_t r = a.row; r < a.row_end; ++r) {
      for (int64_t c = a.col; c < a.col_end; ++c) {
        const bool there = in.start == nullptr || in.start->kept(r, c);
        choice.score.push_back(there ? s.Worth(r, c) : pruning::kGone);
      }
    }
    pruning::Keep(choice.score, each, {}, choice.order, choice.kept);
    size_t i = 0;
    for (int64_t r = a.row; r < a.row_end; ++r) {
      for (int64_t c = a.col; c < a.col_end; ++c) out.Set(r, c, choice.kept[i++] != 0);
    }
  }

  Config config_;
};
}  // namespace weight
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_WEIGHT_SPARSE_GPT_SPARSE_GPT_H_
