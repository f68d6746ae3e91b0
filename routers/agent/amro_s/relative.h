#ifndef SLUICE_ROUTERS_AGENT_AMRO_S_RELATIVE_H_
#define SLUICE_ROUTERS_AGENT_AMRO_S_RELATIVE_H_
// Pheromone that carries information on its own; ours, not of the paper (arXiv 2603.12933), whose
// deposits reward whatever is used. Success and failure both move an edge, and what counts is how
// it does beside the other edges of its row:
//
//   evidence    n, sum u, sum u^2 of the utilities u seen over edge e; each visit leaves
//               exp(-1 / memory) of what e knew (evaporation on the path, as published)
//               when one of 50 visits lately does much worse than before, its row starts anew,
//               and what its agent did in the task's other rows is forgotten
//   advantage   D_e = sum u - n m, m the mean utility of e's row: what e gained over its row
//               A_e = (D_e + share B) / (n_e + share), B the same of e's agent in the task's other
//               rows with share / 2 outcomes of it in the other tasks, and `prior` as configured
//   pheromone   z = (A_best - A_e)^2 / (2 v (1 / n_e + 1 / n_best)), v the row's variance
//               log tau_e = -(1 + sharpen N / size) z, N of the row
//
// exp(-z) is Maillard's sampling (Apprentissage sequentiel, thesis, 2013): an edge is drawn as
// often as it may still be the best. The row sharpens as it learns. All of it is sums over
// outcomes, so their order does not matter. Derive costs O(tasks * edges).
#include <algorithm>
#include <cmath>
#include <vector>

#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
struct RelativeConfig {
  double sharpen = 0.03, share = 15, alarm = 2.5;
  template <class V>
  void VisitFields(V&& v) {
    v("sharpen", sharpen, Range<double>{0, 1000},
      "relative pheromone: how fast a row settles: by 1 + sharpen times outcomes an edge");
    v("share", share, Range<double>{0, 1e9},
      "relative pheromone: outcomes that an agent's evidence elsewhere counts for");
    v("alarm", alarm, Range<double>{0, 1e9},
      "relative pheromone: evidence, beyond log agents, that an edge does worse lately, at which "
      "its row starts anew");
  }
};

class RelativePheromone {
 public:
  RelativePheromone(const RelativeConfig& c, const UtilityConfig& u, const AgentGraph& g,
                    const Layout& l)
      : config_(c), utility_(u), graph_(g), l_(l) {}
  static int64_t sums(const Layout& l) { return kSums * l.tasks * l.edges; }
  static int64_t evidence(const Layout& l) { return kColumns * l.tasks * l.edges; }

  // An edge is credited with the path's quality and with its own agent's cost and latency, or an
  // equal share of them where nobody told.
  void Observe(const AgentOutcome& o, std::vector<SumDelta>& out) const {
    const double share = 1.0 / static_cast<double>(o.path.size());
    for (int s = 0; s < l_.stages; ++s) {
      const int64_t edge = l_.edge(s, o.path);
      if (edge < 0) continue;
      const double cost = o.stage_cost_usd.empty() ? o.cost_usd * share : o.stage_cost_usd[s];
      const double latency = o.stage_latency_s.empty() ? o.latency_s * share : o.stage_latency_s[s];
      const double u = o.quality - utility_.cost_weight * cost - utility_.latency_weight * latency;
      for (int t = 0; t < l_.tasks; ++t) {
        const double w = o.intent[t];
        if (w <= 0) continue;
        const auto cell = static_cast<uint32_t>(kSums * (t * l_.edges + edge));
        out.push_back({cell + kCount, ToSum(w)});
        out.push_back({cell + kUtility, ToSum(w * u)});
        out.push_back({cell + kSquare, ToSum(w * u * u)});
      }
    }
  }
  void Fold(absl::Span<const int64_t> sums, absl::Span<double> evidence) const {
    std::vector<int> fallen;  // edge of each of a stage's rows; -1: none
    for (int t = 0; t < l_.tasks; ++t) {
      for (int s = 0; s < l_.stages; ++s) {
        fallen.assign(rows(s), -1);
        for (int i = 0; i < rows(s); ++i) {
          const Row r = RowAt(s, i);
          const int64_t first = t * l_.edges + r.first_edge;
          fallen[i] = FoldRow(&sums[kSums * first], &evidence[kColumns * first], r.size);
        }
        for (int i = 0; i < rows(s); ++i) {
          for (const int j : fallen) {
            if (j < 0 || j == fallen[i]) continue;
            const int64_t edge = t * l_.edges + RowAt(s, i).first_edge + j;
            std::fill_n(&evidence[kColumns * edge], kColumns, 0.0);
          }
        }
      }
    }
  }
  // Evidence of all edges, [tasks][edges][columns] -> tau, [tasks][edges], at most 1.
  void Derive(absl::Span<const double> evidence, absl::Span<double> tau) const {
    const auto agents = static_cast<size_t>(l_.agents);
    std::vector<Seen> edges(tau.size());
    std::vector<Seen> nodes(static_cast<size_t>(l_.tasks) * agents);
    std::vector<Seen> all(agents);
    for (int t = 0; t < l_.tasks; ++t) {
      ForEachRow([&](const Row& r) {
        const double* e = &evidence[kColumns * (t * l_.edges + r.first_edge)];
        const double mean = RowOf(e, r.size).mean;
        for (int j = 0; j < r.size; ++j) {
          const double n = e[kColumns * j + kCount];
          const Seen seen = {n, e[kColumns * j + kUtility] - n * mean};
          edges[t * l_.edges + r.first_edge + j] = seen;
          nodes[t * agents + r.first_agent + j].Add(seen, 1);
          all[r.first_agent + j].Add(seen, 1);
        }
      });
    }
    std::vector<Belief> row;
    for (int t = 0; t < l_.tasks; ++t) {
      const std::vector<Seen> configured = Configured(t);
      ForEachRow([&](const Row& r) {
        const int64_t first = t * l_.edges + r.first_edge;
        row.clear();
        for (int j = 0; j < r.size; ++j) {
          const size_t a = r.first_agent + j;
          Seen elsewhere = all[a];
          elsewhere.Add(nodes[t * agents + a], -1);
          Seen beside = nodes[t * agents + a];
          beside.Add(edges[first + j], -1);
          row.push_back(BeliefOf(edges[first + j], beside, elsewhere, configured[a]));
        }
        Weigh(RowOf(&evidence[kColumns * first], r.size), row, &tau[first]);
      });
    }
  }
  // Outcomes of a task.
  double Count(absl::Span<const double> evidence, int t) const {
    double n = 0;
    for (int j = 0; j < l_.size[0]; ++j) n += evidence[kColumns * (t * l_.edges + j) + kCount];
    return n;
  }

 private:
  // Of the sums, and what the evidence has beside them.
  enum Column : uint32_t {
    kCount,
    kUtility,
    kSquare,
    kSums,
    kRecentCount = kSums,
    kRecentUtility,
    kColumns
  };
  static constexpr double kRecent = 50;  // visits that are lately
  struct Seen {
    double n = 0, gained = 0;  // gained: over the row's mean
    void Add(const Seen& s, double sign) {
      n += sign * s.n;
      gained += sign * s.gained;
    }
  };
  struct Belief {
    double n, advantage;
  };
  struct Row {
    int size, first_agent;
    int64_t first_edge;
  };
  struct RowMoments {
    double n, mean, variance;
  };
  template <class F>
  void ForEachRow(const F& f) const {
    for (int s = 0; s < l_.stages; ++s) {
      for (int i = 0; i < rows(s); ++i) f(RowAt(s, i));
    }
  }
  int rows(int stage) const { return stage == 0 ? 1 : l_.size[stage - 1]; }
  Row RowAt(int s, int i) const {
    return {l_.size[s], l_.first_agent[s], l_.first_edge[s] + int64_t{i} * l_.size[s]};
  }
  // The edge that does worse lately and began the row anew; -1: none.
  int FoldRow(const int64_t* sums, double* row, int size) const {
    int fallen = -1;
    for (int j = 0; j < size; ++j) {
      double* e = row + kColumns * j;
      if (Add(sums + kSums * j, e) && Fallen(e, size)) fallen = j;
    }
    if (fallen >= 0) StartAnew(row, size, fallen);
    return fallen;
  }
  // Variance around each edge's own mean, four outcomes of variance 1/4 added: a row of few
  // outcomes is taken for coin tosses.
  static RowMoments RowOf(const double* e, int size) {
    double n = 0;
    double sum = 0;
    double squares = 1;
    double degrees = 4;
    for (int j = 0; j < size; ++j, e += kColumns) {
      if (e[kCount] <= 0) continue;
      n += e[kCount];
      sum += e[kUtility];
      squares += std::max(0.0, e[kSquare] - e[kUtility] * e[kUtility] / e[kCount]);
      degrees += std::max(0.0, e[kCount] - 1);
    }
    return {n, n > 0 ? sum / n : 0, squares / degrees};
  }
  // Whether there was anything to add.
  bool Add(const int64_t* seen, double* e) const {
    if (seen[kCount] == 0) return false;
    const double visits = FromSum(seen[kCount]);
    const double keep = std::exp(-visits / utility_.memory);
    const double keep_recent = std::exp(-visits / kRecent);
    for (uint32_t c = 0; c < kSums; ++c) e[c] = e[c] * keep + FromSum(seen[c]);
    e[kRecentCount] = e[kRecentCount] * keep_recent + visits;
    e[kRecentUtility] = e[kRecentUtility] * keep_recent + FromSum(seen[kUtility]);
    return true;
  }
  // Whether an edge does worse lately. Whoever has more to learn again wants to be surer.
  bool Fallen(const double* e, int size) const {
    const double mean = e[kUtility] / e[kCount];
    const double fall = mean - e[kRecentUtility] / e[kRecentCount];
    const double variance = std::max(e[kSquare] / e[kCount] - mean * mean, 1e-6);
    return fall > 0 &&
           fall * fall * e[kRecentCount] > 2 * variance * (config_.alarm + std::log(size));
  }
  // Of the fallen edge what it did lately stays, of the others nothing: they were compared with
  // what it was.
  static void StartAnew(double* row, int size, int fallen) {
    for (int j = 0; j < size; ++j) {
      double* e = row + kColumns * j;
      if (j != fallen) {
        std::fill_n(e, kColumns, 0.0);
        continue;
      }
      e[kSquare] *= e[kRecentCount] / e[kCount];
      e[kCount] = e[kRecentCount];
      e[kUtility] = e[kRecentUtility];
    }
  }
  // What the configuration says of a task's agents beside those of their stage, as outcomes; none
  // where it says the same of all.
  std::vector<Seen> Configured(int t) const {
    std::vector<Seen> out(static_cast<size_t>(l_.agents));
    for (int s = 0; s < l_.stages; ++s) {
      std::vector<double> u;
      double sum = 0;
      for (const Agent& a : graph_.stages[s]) {
        u.push_back((a.ability.empty() ? 0.5 : a.ability[t]) - utility_.cost_weight * a.cost_usd -
                    utility_.latency_weight * a.latency_s);
        sum += u.back();
      }
      const auto [low, high] = std::minmax_element(u.begin(), u.end());
      if (*high - *low < 1e-12) continue;
      for (int j = 0; j < l_.size[s]; ++j)
        out[l_.first_agent[s] + j] = {utility_.prior, utility_.prior * (u[j] - sum / l_.size[s])};
    }
    return out;
  }
  // From the farthest to the nearest: each step starts from the one before as from so many
  // outcomes, or fewer where the one before knew less; tasks differ more than rows.
  Belief BeliefOf(const Seen& own, const Seen& beside, const Seen& elsewhere,
                  const Seen& configured) const {
    const double far = std::max(0.0, elsewhere.n);
    const double other_tasks = (configured.gained + elsewhere.gained) / (utility_.prior + far);
    const double near = std::max(0.0, beside.n);
    const double other_rows = Mean(other_tasks, near, beside.gained);
    const double told = configured.n + far;
    const double known = near + (told > 0 ? config_.share * told / (config_.share + told) : 0);
    return {own.n + std::min(config_.share, known), Mean(other_rows, own.n, own.gained)};
  }
  // Of outcomes after `share` of the prior.
  double Mean(double prior, double n, double gained) const {
    return config_.share + n > 0 ? (config_.share * prior + gained) / (config_.share + n) : 0;
  }

  void Weigh(const RowMoments& row, const std::vector<Belief>& edges, double* tau) const {
    const Belief* best = nullptr;
    for (const Belief& b : edges) {
      if (b.n > 0 && (best == nullptr || b.advantage > best->advantage)) best = &b;
    }
    const double n = std::max(0.0, row.n) / static_cast<double>(edges.size());
    const double sharp = 1 + config_.sharpen * n;
    for (size_t j = 0; j < edges.size(); ++j) {
      tau[j] = 1;
      if (edges[j].n <= 0) continue;
      const double gap = best->advantage - edges[j].advantage;
      const double z = gap * gap / (2 * row.variance * (1 / edges[j].n + 1 / best->n));
      // Pheromone stays positive whatever is seen.
      tau[j] = std::exp(std::max(-sharp * z, -460.0));
    }
  }

  const RelativeConfig& config_;
  const UtilityConfig& utility_;
  const AgentGraph& graph_;
  const Layout& l_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_AMRO_S_RELATIVE_H_
