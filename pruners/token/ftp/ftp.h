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
#include "sluice/api/one_unit.h"
#include "sluice/api/router.h"
#include "sluice/pruners/token/common/quota.h"
#include "sluice/runtime/kernels/linear.h"

SLUICE_BEGIN_NAMESPACE
namespace token {
namespace ftp {
using quota::kCompute;
using quota::kSkip;
using quota::Unit;
constexpr int64_t kFactors = 4;

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

}  // namespace ftp

// The learned router. Items: the tokens of one sequence in order, without padding; feedback
// [items]: the attention that each received (runtime/host/received_attention.h); units {0: compute,
// 1: skip}. The first token always computes (inferred: the attention sink). A tie computes; a logit
// that is not a number computes under `threshold` and is never selected under `topk`. O(items
// (hidden + log items)).
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
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const { return quota::DescribeUnit(unit); }

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
      quota::AssignTop(n, quota::Kept(config_.sparsity, n), order, out, [&](int64_t i) {
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
  UnitInfo DescribeUnit(const Plan&, int64_t unit) const { return quota::DescribeUnit(unit); }

  absl::StatusOr<Plan> MakePlan(const RouteShape& s) const {
    Plan p;
    SLUICE_ASSIGN_OR_RETURN(p.shape, one_unit::Shape(s, 2, "width", 0, 0));
    p.max_entries = s.items;
    return p;
  }
  absl::Status Run(const Plan&, const RouteInputs& in, const RunContext&, Assignment& out) const {
    const int64_t n = in.items;
    const int64_t recent = n - quota::Kept(config_.sparsity, n) + 1;
    one_unit::Assign(n, 2, out, [&](int64_t i) -> one_unit::Choice {
      return {i == 0 || i >= recent ? ftp::kCompute : ftp::kSkip, static_cast<float>(i)};
    });
    return absl::OkStatus();
  }

 private:
  Config config_;
};
}  // namespace token
SLUICE_END_NAMESPACE
#endif  // SLUICE_PRUNERS_TOKEN_FTP_FTP_H_
