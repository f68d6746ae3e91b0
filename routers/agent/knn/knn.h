#ifndef SLUICE_ROUTERS_AGENT_KNN_KNN_H_
#define SLUICE_ROUTERS_AGENT_KNN_KNN_H_
// k nearest neighbours: the agent with the highest mean utility over the k stored queries whose
// features are most like the query's (cosine). Stored queries and every agent's outcome on them are
// its weights; nothing is learned online. A decision costs O(stored * width + k * agents).
#include <array>
#include <cmath>
#include <vector>

#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class Knn : public Unlearned {
 public:
  static constexpr absl::string_view kName = "knn";
  static constexpr int64_t kMaxNeighbours = 256;
  struct Config {
    int64_t k = 32;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      v("k", k, Range<int64_t>{1, kMaxNeighbours},
        "neighbours asked; ties go to the one stored first");
      utility.VisitFields(v);
    }
  };
  // knn.features [rows, width], knn.quality, knn.cost and knn.latency [rows, agents].
  static absl::StatusOr<Knn> Create(const Config& c, const WeightSource& w) {
    Knn r;
    r.config_ = c;
    SLUICE_ASSIGN_OR_RETURN(r.rows_, w.Int("sluice.knn.rows"));
    SLUICE_ASSIGN_OR_RETURN(r.width_, w.Int("sluice.knn.width"));
    SLUICE_ASSIGN_OR_RETURN(r.agents_, w.Int("sluice.knn.agents"));
    if (r.rows_ < 1 || r.width_ < 1 || r.agents_ < 1 || r.rows_ > (int64_t{1} << 24) ||
        r.width_ > (1 << 16) || r.agents_ > kMaxStages * kMaxStageAgents) {
      return absl::InvalidArgumentError(absl::StrCat("knn: ", r.rows_, " rows of width ", r.width_,
                                                     " for ", r.agents_, " agents is not a table"));
    }
    const auto rows = static_cast<uint64_t>(r.rows_), agents = static_cast<uint64_t>(r.agents_);
    SLUICE_ASSIGN_OR_RETURN(r.features_,
                            w.ReadF32("knn.features", {static_cast<uint64_t>(r.width_), rows}));
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> quality,
                            w.ReadF32("knn.quality", {agents, rows}));
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> cost, w.ReadF32("knn.cost", {agents, rows}));
    SLUICE_ASSIGN_OR_RETURN(const std::vector<float> latency,
                            w.ReadF32("knn.latency", {agents, rows}));
    for (size_t i = 0; i < quality.size(); ++i) {
      r.utility_.push_back(static_cast<float>(quality[i] - c.utility.cost_weight * cost[i] -
                                              c.utility.latency_weight * latency[i]));
    }
    for (int64_t i = 0; i < r.rows_; ++i) Normalise(&r.features_[i * r.width_], r.width_);
    return r;
  }
  absl::StatusOr<Plan> MakePlan(std::shared_ptr<const AgentGraph> g) const {
    Plan p = Plan::Of(std::move(g));
    if (p.layout.agents != agents_) {
      return absl::InvalidArgumentError(
          absl::StrCat("knn: outcomes of ", agents_, " agents, the graph has ", p.layout.agents));
    }
    return p;
  }
  absl::Status Run(const Plan& p, absl::Span<const double>, const AgentRequest& q, AgentDecision& d,
                   AgentTrace* trace) const {
    if (static_cast<int64_t>(q.features.size()) != width_) {
      return absl::InvalidArgumentError(
          absl::StrCat("knn: query has ", q.features.size(), " features, wanted ", width_));
    }
    // The k best so far, best first; a newcomer moves up past smaller ones only, so the first
    // stored wins a tie.
    std::array<std::pair<float, int32_t>, kMaxNeighbours> near;
    int64_t n = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      const float* x = &features_[i * width_];
      float dot = 0;
      for (int64_t c = 0; c < width_; ++c) dot += x[c] * q.features[c];
      if (!(dot == dot) || (n == config_.k && !(dot > near[n - 1].first))) continue;
      int64_t at = n < config_.k ? n++ : n - 1;
      for (; at > 0 && near[at - 1].first < dot; --at) near[at] = near[at - 1];
      near[at] = {dot, static_cast<int32_t>(i)};
    }
    return Walk(p.layout, 0, q, d, trace, [&](const Stage& s, Weights& w) {
      TakeBest(s, w, [&](int j) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i)
          sum += utility_[near[i].second * agents_ + s.first_agent + j];
        return n > 0 ? sum / static_cast<double>(n) : 0.0;
      });
    });
  }

 private:
  static void Normalise(float* x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += double{x[i]} * x[i];
    const double scale = sum > 0 ? 1 / std::sqrt(sum) : 0;
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(x[i] * scale);
  }
  Config config_;
  int64_t rows_ = 0, width_ = 0, agents_ = 0;
  std::vector<float> features_, utility_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_KNN_KNN_H_
