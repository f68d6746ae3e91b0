#ifndef SLUICE_ROUTERS_AGENT_COMMON_STAGE_WALK_H_
#define SLUICE_ROUTERS_AGENT_COMMON_STAGE_WALK_H_
// What every agent router does around its own scores: walk the stages, leave blocked agents out,
// draw, remember the propensity and the trace.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "sluice/api/agent_router.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
// Numbers of a graph that a decision needs, counted once.
struct Layout {
  int stages = 0, tasks = 0;
  std::array<int, kMaxStages> size{}, first_agent{};
  std::array<int64_t, kMaxStages> first_edge{};
  int64_t agents = 0, edges = 0;

  static Layout Of(const AgentGraph& g) {
    Layout l;
    l.stages = g.num_stages();
    l.tasks = static_cast<int>(g.num_tasks());
    l.agents = g.num_agents();
    l.edges = g.num_edges();
    for (int s = 0; s < l.stages; ++s) {
      l.size[s] = g.stage_size(s);
      l.first_agent[s] = static_cast<int>(g.first_agent(s));
      l.first_edge[s] = g.first_edge(s);
    }
    return l;
  }
  // The edge that a path uses into stage s; -1: an end of it has left the team.
  int64_t edge(int s, absl::Span<const int32_t> path) const {
    if (path[s] < 0 || (s > 0 && path[s - 1] < 0)) return -1;
    const int64_t row = s == 0 ? 0 : path[s - 1] - first_agent[s - 1];
    return first_edge[s] + row * size[s] + (path[s] - first_agent[s]);
  }
};
struct WalkPlan : AgentPlanInfo {
  Layout layout;
  static WalkPlan Of(std::shared_ptr<const AgentGraph> g) {
    WalkPlan p;
    p.layout = Layout::Of(*g);
    p.graph = std::move(g);
    return p;
  }
};

struct Stage {
  int index = 0, size = 0;
  int available = 0;  // that are open
  int32_t first_agent = 0;
  int64_t first_edge = 0;      // candidate j is reached by edge first_edge + j
  const bool* open = nullptr;  // [size]
};
// What a router says of a stage's candidates: 0 until it does. Entries of blocked ones are ignored.
struct Weights {
  // Left as they are beyond the stage's candidates: clearing all would cost a small team more than
  // its decision.
  std::array<double, kMaxStageAgents> tau, eta, p;  // p: not normalised, >= 0
  double q0 = 0;    // probability of taking `greedy` instead of drawing
  int greedy = -1;  // -1: the largest p; ties go to the lowest index

  void Clear(int size) {
    for (int j = 0; j < size; ++j) {
      tau[j] = 0;
      eta[j] = 0;
      p[j] = 0;
    }
    q0 = 0;
    greedy = -1;
  }
};

inline absl::Status CheckFollow(const Layout& l, absl::Span<const int32_t> follow) {
  if (follow.empty()) return absl::OkStatus();
  if (follow.size() != static_cast<size_t>(l.stages))
    return absl::InvalidArgumentError(
        absl::StrCat("follow has ", follow.size(), " agents, wanted one a stage = ", l.stages));
  for (int s = 0; s < l.stages; ++s) {
    const int32_t j = follow[s] - l.first_agent[s];
    if (j < 0 || j >= l.size[s])
      return absl::OutOfRangeError(absl::StrCat("follow: stage ", s, " has no agent ", follow[s],
                                                "; its agents are ", l.first_agent[s], " to ",
                                                l.first_agent[s] + l.size[s] - 1));
  }
  return absl::OkStatus();
}
inline absl::Status CheckRequest(const Layout& l, const AgentRequest& q) {
  if (q.intent.size() != static_cast<size_t>(l.tasks)) {
    return absl::InvalidArgumentError(
        absl::StrCat("intent has ", q.intent.size(), " entries, wanted one a task = ", l.tasks));
  }
  double sum = 0;
  for (double w : q.intent) {
    if (!(w >= 0))
      return absl::InvalidArgumentError(absl::StrCat("intent holds ", w, "; wanted numbers >= 0"));
    sum += w;
  }
  if (!(std::abs(sum - 1) < 1e-6)) {
    return absl::InvalidArgumentError(absl::StrCat("intent sums to ", sum, ", wanted 1"));
  }
  if (!(q.explore >= 0 && q.explore <= 1))
    return absl::OutOfRangeError(absl::StrCat("explore: ", q.explore, " is outside [0, 1]"));
  if ((!q.blocked.empty() && q.blocked.size() != static_cast<size_t>(l.agents)) ||
      (!q.live.empty() && q.live.size() != static_cast<size_t>(l.agents))) {
    return absl::InvalidArgumentError(
        absl::StrCat("blocked and live must be empty or have one entry an agent = ", l.agents,
                     "; got ", q.blocked.size(), " and ", q.live.size()));
  }
  return CheckFollow(l, q.follow);
}

// The open candidate of the largest p; ties go to the lowest index.
inline int Likeliest(const bool* open, int n, const double* p) {
  int best = -1;
  for (int j = 0; j < n; ++j) {
    if (open[j] && (best < 0 || p[j] > p[best])) best = j;
  }
  return best;
}
// What a router said of n candidates as probabilities, into w.p, and the candidate in whose share
// of [0, 1) u lies. Scores that are NaN, negative or infinite count as 0; when nothing is left the
// draw is uniform over the `available` open ones. One simple loop after the other: each is a few
// instructions of several candidates at once, and none hangs on what the scores are.
inline int Draw(const bool* open, int n, int available, double explore, double u, Weights& w) {
  double* p = w.p.data();
  double total = 0;
  for (int j = 0; j < n; ++j) {
    const bool counts = open[j] & (p[j] > 0) & (p[j] < INFINITY);
    p[j] = counts ? p[j] : 0.0;
    total += p[j];
  }
  const double share = 1.0 / available;
  const int best = w.greedy >= 0 ? w.greedy : w.q0 > 0 ? Likeliest(open, n, p) : 0;
  if (total > 0 && std::isfinite(total)) {
    for (int j = 0; j < n; ++j) p[j] /= total;
  } else {
    for (int j = 0; j < n; ++j) p[j] = open[j] ? share : 0.0;
  }
  if (w.q0 > 0) {
    for (int j = 0; j < n; ++j) p[j] *= 1 - w.q0;
    p[best] += w.q0;
  }
  if (explore > 0) {
    for (int j = 0; j < n; ++j) p[j] = (1 - explore) * p[j] + explore * (open[j] ? share : 0.0);
  }
  double upto = 0;
  int pick = 0;  // how many shares end at u or before it
  for (int j = 0; j < n; ++j) {
    upto += p[j];
    pick += upto <= u;
  }
  if (pick < n) return pick;
  pick = n - 1;  // rounding left the last sliver uncovered
  while (pick > 0 && !(p[pick] > 0)) --pick;
  return pick;
}

// weigh(const Stage&, Weights&); a `greedy` that is set must be open. The request's `explore` is
// spread evenly over what is open, after all that the router says. O(agents of the path's stages)
// beside the router's own work.
template <class Weigh>
absl::Status Walk(const Layout& l, uint64_t seed, const AgentRequest& q, AgentDecision& d,
                  AgentTrace* trace, const Weigh& weigh) {
  SLUICE_RETURN_IF_ERROR(CheckRequest(l, q));
  d.stages = l.stages;
  d.propensity = 1;
  std::array<bool, kMaxStageAgents> open;
  Weights w;
  int row = 0;
  for (int s = 0; s < l.stages; ++s) {
    const int n = l.size[s], first = l.first_agent[s];
    int available = n;
    if (q.blocked.empty()) {
      std::fill_n(open.begin(), n, true);
    } else {
      available = 0;
      for (int j = 0; j < n; ++j) {
        open[j] = q.blocked[first + j] == Block::kNone;
        available += open[j];
      }
    }
    if (available == 0) {
      return absl::UnavailableError(
          absl::StrCat("stage ", s, ": none of its ", n, " agents may be chosen"));
    }
    w.Clear(n);
    weigh(Stage{s, n, available, first, l.first_edge[s] + int64_t{row} * n, open.data()}, w);
    const double u = RandomUniform({seed, q.id, static_cast<uint64_t>(s), 0, 0});
    const int drawn = Draw(open.data(), n, available, q.explore, u, w);
    const int pick = q.follow.empty() ? drawn : q.follow[s] - first;
    d.path[s] = first + pick;
    d.propensity *= w.p[pick];
    if (trace != nullptr) {
      const size_t before = trace->size();
      trace->resize(before + static_cast<size_t>(n));
      AgentCandidate* to = trace->data() + before;
      for (int j = 0; j < n; ++j) {
        to[j] = {s,
                 first + j,
                 q.blocked.empty() ? Block::kNone : q.blocked[first + j],
                 j == pick,
                 static_cast<float>(w.tau[j]),
                 static_cast<float>(w.eta[j]),
                 static_cast<float>(w.p[j])};
      }
    }
    row = pick;
  }
  return absl::OkStatus();
}
// The open candidate of the highest score takes everything; ties go to the lowest index, NaN never
// wins.
template <class Score>
void TakeBest(const Stage& s, Weights& w, const Score& score) {
  int best = -1;
  double top = 0;
  for (int j = 0; j < s.size; ++j) {
    if (!s.open[j]) continue;
    const double x = w.eta[j] = score(j);
    if (x == x && (best < 0 || x > top)) {
      best = j;
      top = x;
    }
  }
  if (best >= 0) w.p[best] = 1;
}
// Routers that never learn.
struct Unlearned {
  using Plan = WalkPlan;
  absl::StatusOr<Plan> MakePlan(std::shared_ptr<const AgentGraph> g) const {
    return Plan::Of(std::move(g));
  }
  void InitialState(const Plan&, absl::Span<double>) const {}
  void Observe(const Plan&, const AgentOutcome&, std::vector<SumDelta>&) const {}
  void Fold(const Plan&, absl::Span<const int64_t>, absl::Span<double>) const {}
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_COMMON_STAGE_WALK_H_
