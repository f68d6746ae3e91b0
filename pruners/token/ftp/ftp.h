#ifndef SLUICE_PRUNERS_TOKEN_FTP_FTP_H_
#define SLUICE_PRUNERS_TOKEN_FTP_FTP_H_
// FTP, fine-grained token-wise pruner (arXiv 2412.11494): one router for all blocks decides from
// four numbers a token which tokens a block computes; the others ride the residual stream and leave
// no key behind. Forms that the paper leaves open are switches, marked "inferred".
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "absl/types/span.h"
#include "sluice/api/attention_plan.h"
#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/linear.h"
#include "sluice/runtime/kernels/softmax/softmax.h"

SLUICE_BEGIN_NAMESPACE
namespace ftp {
enum Unit : int32_t { kCompute = 0, kSkip = 1 };
constexpr int64_t kFactors = 4;
constexpr int64_t kScoreQueries = 64;  // inferred: the last computed queries vote

// Tokens that a block with this sparsity computes when it computes an exact number: round((1 - s)
// n), at least 1.
inline int64_t Kept(double sparsity, int64_t n) {
  return std::clamp<int64_t>(std::llround((1 - sparsity) * static_cast<double>(n)),
                             std::min<int64_t>(1, n), n);
}

// The four factors of every token [n, 4]: position t / (n - 1), log(1 + score), rank / n (0:
// highest score, ties and NaN by index, NaN last), sparsity of the block. `causal`: a token is
// ranked among those up to itself. `order`: scratch [n]. `positions` [n], ascending: t, and the
// last one n - 1, where the tokens are not all there; empty: the tokens' own order. O(n log n);
// causal: O(n^2) moves in the worst case.
inline void Factors(absl::Span<const float> score, double sparsity, bool causal,
                    absl::Span<int32_t> order, float* out,
                    absl::Span<const int64_t> positions = {}) {
  const int64_t n = static_cast<int64_t>(score.size());
  if (!causal) std::iota(order.begin(), order.begin() + n, 0);
  const auto value = [&](int32_t t) {
    const float s = score[t];
    return std::isnan(s) ? -std::numeric_limits<float>::infinity() : s;
  };
  const auto before = [&](int32_t a, int32_t b) {
    const float x = value(a), y = value(b);
    return x != y ? x > y : a < b;
  };
  const auto put = [&](int64_t t, int64_t rank, int64_t of) {
    const float s = score[t];
    float* f = out + t * kFactors;
    const int64_t place = positions.empty() ? t : positions[static_cast<size_t>(t)];
    const int64_t last = positions.empty() ? n - 1 : positions.back();
    f[0] = last > 0 ? static_cast<float>(static_cast<double>(place) / static_cast<double>(last))
                    : 0.0f;
    f[1] = std::log1p(std::max(std::isnan(s) ? 0.0f : s, 0.0f));
    f[2] = static_cast<float>(static_cast<double>(rank) / static_cast<double>(of));
    f[3] = static_cast<float>(sparsity);
  };
  if (!causal) {
    std::sort(order.begin(), order.begin() + n, before);
    for (int64_t r = 0; r < n; ++r) put(order[r], r, n);
    return;
  }
  for (int64_t t = 0; t < n; ++t) {  // insertion: order[0, t) is sorted
    const auto end = order.begin() + t;
    const auto at = std::upper_bound(order.begin(), end, static_cast<int32_t>(t), before);
    std::move_backward(at, end, end + 1);
    *at = static_cast<int32_t>(t);
    put(t, at - order.begin(), t + 1);
  }
}

// Attention that every key receives from the last queries: mean over heads and over the queries at
// or after the key, times the number of keys (uniform attention gives about 1, whatever the
// length). q [m, heads, d]: the queries of the last m keys, in order; k [rows, kv_heads, d], both
// after RoPE. O(m rows heads d). Inferred: the paper does not define its score. `self_only`: each
// of the m keys by its own query alone, what a causal decision may know (out [m]).
class ReceivedAttention {
 public:
  void Run(const HeadsView<const float>& q, const KvView& k, float scale, bool self_only,
           float* out) {
    const int64_t m = q.rows, rows = k.rows, d = k.dim,
                  group = q.heads / std::max<int64_t>(1, k.heads);
    if (m == 0) return;
    keys_.resize(rows * d);
    logits_.resize(m * rows);
    scratch_.resize(kernels::GemmScratchFloats(d));
    std::fill(out, out + (self_only ? m : rows), 0.0f);
    for (int64_t h = 0; h < q.heads; ++h) {
      if (h % group == 0) {
        for (int64_t j = 0; j < rows; ++j)
          kernels::ConvertToF32(k.at(j, h / group), k.dtype, d, &keys_[j * d]);
      }
      kernels::GemmNT(q.data + h * q.head_stride, q.row_stride, keys_.data(), d, m, rows, d,
                      logits_.data(), rows, scratch_.data());
      for (int64_t i = 0; i < m; ++i) {
        float* row = &logits_[i * rows];
        const int64_t visible = rows - m + i + 1;
        for (int64_t j = 0; j < visible; ++j) row[j] *= scale;
        kernels::Softmax(row, visible);
        if (self_only) {
          out[i] += row[visible - 1] * static_cast<float>(visible);
        } else {
          for (int64_t j = 0; j < visible; ++j) out[j] += row[j];
        }
      }
    }
    const float heads = static_cast<float>(q.heads);
    for (int64_t j = 0; j < (self_only ? m : rows); ++j) {
      const int64_t votes = self_only ? 1 : std::min(m, rows - j);
      out[j] *= (self_only ? 1.0f : static_cast<float>(rows)) / (heads * static_cast<float>(votes));
    }
  }

 private:
  std::vector<float> keys_, logits_, scratch_;
};

// The k items with the largest value compute, the first item always does; ties to the lowest index,
// NaN last.
template <class Value>
void AssignTop(int64_t items, int64_t k, absl::Span<int32_t> order, Assignment& out,
               const Value& value) {
  for (int64_t i = 0; i < items; ++i) order[i] = static_cast<int32_t>(i);
  const auto before = [&](int32_t a, int32_t b) {
    if ((a == 0) != (b == 0)) return a == 0;
    const double x = value(a), y = value(b);
    if (std::isnan(x) || std::isnan(y))
      return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
    return x != y ? x > y : a < b;
  };
  std::nth_element(order.begin(), order.begin() + std::min(k, items), order.begin() + items,
                   before);
  one_unit::Assign(items, 2, out, [&](int64_t i) -> one_unit::Choice {
    return {kSkip, static_cast<float>(value(static_cast<int32_t>(i)))};
  });
  for (int64_t r = 0; r < std::min(k, items); ++r) out.unit[order[r]] = kCompute;
}

// The units of both routers.
inline UnitInfo DescribeUnit(int64_t unit) {
  if (unit == kSkip) return {UnitKind::kSkip, 0.0, Concurrency::kRows};
  return {UnitKind::kHost, 1.0, Concurrency::kAlone};
}
}  // namespace ftp

// The learned router. Items: the tokens of one sequence in order, without padding; feedback
// [items]: the attention that each received (ftp::ReceivedAttention); units {0: compute, 1: skip}.
// The first token always computes (inferred: the attention sink). A tie computes; a logit that is
// not a number computes under `threshold` and is never selected under `topk`. O(items (hidden + log
// items)).
class Ftp {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "token/ftp",
      .title = "FTP: A Fine-grained Token-wise Pruner for Large Language Models via Token Routing",
      .arxiv = "2412.11494",
      .domain = Domain::kToken,
      .combine = Combine::kReplace,
      .decides = Decides::kPrompt,
      .learned = true,
      .causal = false,  // ranks and quotas are over the whole prompt
      .items_alone = false,
      .reads = kReadsFeedback,
      .may_read = kReadsPositions,
      .full_budget = "sparsity=0,topk=1",
      .small_budget = "sparsity=0.75,topk=1",
  };
  struct Config {
    double sparsity = 0;
    int64_t topk = 0;
    int64_t causal = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("sparsity", sparsity, Range<double>{0, 1}, "of the block; a factor, and the quota of topk");
      v("topk", topk, Range<int64_t>{0, 1},
        "1: compute exactly (1 - sparsity) of the tokens, those with the highest margin");
      v("causal", causal, Range<int64_t>{0, 1}, "1: a token is ranked among those up to itself");
    }
  };
  struct Plan : RoutePlanInfo {
    ReluPair::Scratch router;
    size_t factors = 0, logits = 0, order = 0;
  };

  static absl::StatusOr<Ftp> Create(const Config& c, const WeightSource& w) {
    Ftp r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(const int64_t hidden, w.Int("sluice.ftp.hidden"));
    if (hidden <= 0 || hidden > (1 << 16))
      return absl::InvalidArgumentError(
          absl::StrCat("sluice.ftp.hidden ", hidden, "; allowed 1 to ", 1 << 16));
    SLUICE_ASSIGN_OR_RETURN(r.router_.first, Linear::Read(w, "ftp.router0", ftp::kFactors, hidden));
    SLUICE_ASSIGN_OR_RETURN(r.router_.second, Linear::Read(w, "ftp.router1", hidden, 2));
    return r;
  }
  static WeightKeys Weights(const Config&, const RouteShape&) {
    constexpr int64_t kHidden = 12;
    WeightKeys w;
    w.ints = {{"sluice.ftp.hidden", kHidden}};
    w.AddLinear("ftp.router0", ftp::kFactors, kHidden);
    w.AddLinear("ftp.router1", kHidden, 2);
    return w;
  }
  static ftp::Unit Decide(const float* logits) {
    return logits[ftp::kSkip] > logits[ftp::kCompute] ? ftp::kSkip : ftp::kCompute;
  }
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const { return ftp::DescribeUnit(unit); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "width", 0, 0));
    WorkspaceLayout w;
    p.router = router_.Reserve(s.items, w);
    p.factors = w.Add<float>(s.items * ftp::kFactors);
    p.logits = w.Add<float>(s.items * 2);
    p.order = w.Add<int32_t>(s.items);
    p.workspace_bytes = w.bytes();
    p.max_entries = s.items;
    return p;
  }
  // Logits [items, 2] of (compute, skip) from factors [items, 4]. O(items hidden).
  void Logits(const Plan& p, const MatrixView<const float>& factors, const RunContext& ctx,
              float* logits) const {
    router_.ApplyRows(factors.data, factors.rows, ctx.workspace, p.router, logits);
  }
  absl::Status Run(const Plan& p, const RouteInputs& in, const RunContext& ctx,
                   Assignment& out) const {
    const int64_t n = in.items;
    const absl::Span<int32_t> order = absl::MakeSpan(ctx.workspace.At<int32_t>(p.order), n);
    float* factors = ctx.workspace.At<float>(p.factors);
    float* logits = ctx.workspace.At<float>(p.logits);
    ftp::Factors(in.feedback, config_.sparsity, config_.causal != 0, order, factors, in.positions);
    Logits(p, {factors, n, ftp::kFactors, ftp::kFactors}, ctx, logits);

    if (config_.topk != 0) {
      ftp::AssignTop(n, ftp::Kept(config_.sparsity, n), order, out, [&](int64_t i) {
        return static_cast<double>(logits[2 * i + ftp::kCompute]) -
               static_cast<double>(logits[2 * i + ftp::kSkip]);
      });
      return absl::OkStatus();
    }
    one_unit::Assign(n, 2, out, [&](int64_t i) -> one_unit::Choice {
      const float* l = logits + 2 * i;
      const float margin = l[ftp::kCompute] - l[ftp::kSkip];
      return {i == 0 ? ftp::kCompute : Decide(l), margin};
    });
    return absl::OkStatus();
  }

 private:
  Config config_;
  ReluPair router_;
};

// The static router: the first token, then the most recent ones; what the genetic search runs with,
// and a baseline. Items: the tokens of one sequence in order. O(items).
class FtpStatic {
 public:
  static constexpr RouteTraits kTraits = {
      .name = "token/ftp_static",
      .title = "FTP: A Fine-grained Token-wise Pruner for Large Language Models via Token Routing",
      .arxiv = "2412.11494",
      .domain = Domain::kToken,
      .combine = Combine::kReplace,
      .decides = Decides::kPrompt,
      .causal = false,
      .items_alone = false,
      .full_budget = "sparsity=0",
      .small_budget = "sparsity=0.75",
  };
  struct Config {
    double sparsity = 0;
    template <class V>
    void VisitFields(V&& v) {
      v("sparsity", sparsity, Range<double>{0, 1}, "share of the tokens that the block skips");
    }
  };
  struct Plan : RoutePlanInfo {};

  static absl::StatusOr<FtpStatic> Create(const Config& c) {
    FtpStatic r;
    r.config_ = c;
    return r;
  }
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const { return ftp::DescribeUnit(unit); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "width", 0, 0));
    p.max_entries = s.items;
    return p;
  }
  absl::Status Run(const Plan&, const RouteInputs& in, const RunContext&, Assignment& out) const {
    const int64_t n = in.items;
    const int64_t recent = n - ftp::Kept(config_.sparsity, n) + 1;
    one_unit::Assign(n, 2, out, [&](int64_t i) -> one_unit::Choice {
      return {i == 0 || i >= recent ? ftp::kCompute : ftp::kSkip, static_cast<float>(i)};
    });
    return absl::OkStatus();
  }

 private:
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_TOKEN_FTP_FTP_H_
