#ifndef SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_H_
#define SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_H_
// AMRO-S, ant-colony routing for multi-agent LLM systems (arXiv 2603.12933): one pheromone matrix
// per task, fused by the query's intent; agents drawn stage by stage by pheromone^alpha *
// heuristic^beta; only answers that pass the quality gate reinforce their path.
//
//   tau_q    = sum_t w_t tau_t
//   eta_j    = sum_t w_t (lA ability + lL norm(1/load) + lR norm(1/latency) + ...)
//   p_ij     ~ tau_q[i][j]^alpha * eta_j^beta
//   tau_t[e] <- (1 - rho) tau_t[e] + w_t Q / (f + eps)      e on an accepted path, f its system
//   cost
//
// The last line saturates: an edge in use tends to Q / (rho f) whatever its success rate. With
// pheromone=relative (ours, relative.h) it is replaced by evidence of how an edge does beside the
// others; the configured ability then counts in the pheromone and no longer in the heuristic.
//
// An epoch's update is applied as one batch: n visits evaporate (1 - rho)^n, and each deposit
// decays as the mean visit's would. Epochs of one outcome give the published update to the letter.
// A decision costs O(tasks * agents of the path's rows), skipping tasks of weight 0; Fold costs
// O(tasks * edges).
#include <algorithm>
#include <cmath>

#include "absl/strings/str_split.h"
#include "sluice/routers/agent/amro_s/relative.h"
#include "sluice/routers/agent/common/arm_table.h"
#include "sluice/routers/agent/common/stage_walk.h"

SLUICE_BEGIN_NAMESPACE
namespace agent {
class AmroS {
 public:
  static constexpr absl::string_view kName = "amro_s";
  enum class Pheromone : uint8_t { kPublished, kRelative };
  enum class Evaporate : uint8_t { kPath, kRow, kGlobal };
  enum class Importance : uint8_t { kNone, kPropensity };
  enum class Ability : uint8_t { kPrior, kMeasured };
  struct Config {
    double alpha = 1, beta = 2;
    double rho = 0.02, deposit = 1, base_cost = 1, epsilon = 1e-6, live_epsilon = 1;
    double tau0 = 1, tau_min = 0, tau_max = 0;
    double ability_weight = 1, load_weight = 0.1, speed_weight = 0, price_weight = 0;
    double q0 = 0, anneal = 0, clip = 20, optimism = 0;
    Pheromone pheromone = Pheromone::kPublished;
    RelativeConfig relative;
    Evaporate evaporate = Evaporate::kPath;
    Importance importance = Importance::kNone;
    Ability ability = Ability::kPrior;
    bool rho_by_intent = false, normalise_rows = false;
    int64_t seed = 1;
    UtilityConfig utility;
    template <class V>
    void VisitFields(V&& v) {
      using R = Range<double>;
      v("alpha", alpha, R{0, 1000}, "exponent of the pheromone");
      v("beta", beta, R{0, 1000}, "exponent of the heuristic");
      v("pheromone", pheromone, Choices{"published", "relative"},
        "what paths leave: published: deposits of accepted answers; relative: how an edge does "
        "beside the others, not in the paper");
      relative.VisitFields(v);
      v("rho", rho, R{0, 0.999}, "evaporation of one accepted answer");
      v("deposit", deposit, R{0, 1000}, "Q: what an accepted answer of cost 1 adds");
      v("base_cost", base_cost, R{0, 1000},
        "f = base_cost + cost_weight * USD + latency_weight * seconds");
      v("epsilon", epsilon, R{0, 1}, "added to f before dividing");
      v("live_epsilon", live_epsilon, R{1e-9, 1e9},
        "added to load, latency and cost before dividing");
      v("tau0", tau0, R{1e-9, 1e9}, "pheromone at the start");
      v("tau_min", tau_min, R{0, 1e9}, "MAX-MIN lower bound; 0: none (as published)");
      v("tau_max", tau_max, R{0, 1e9}, "MAX-MIN upper bound; 0: none (as published)");
      v("ability_weight", ability_weight, R{0, 1000}, "lambda_A of the heuristic");
      v("load_weight", load_weight, R{0, 1000}, "lambda_L of the heuristic");
      v("speed_weight", speed_weight, R{0, 1000}, "lambda_R of the heuristic: inverse latency");
      v("price_weight", price_weight, R{0, 1000}, "of inverse configured cost; not in the paper");
      v("q0", q0, R{0, 1},
        "probability of taking the best candidate instead of drawing (ACS); 0: as published");
      v("anneal", anneal, R{0, 1e9}, "outcomes after which drawing is half as likely; 0: constant");
      v("clip", clip, R{1, 1e6}, "largest 1 / propensity");
      v("evaporate", evaporate, Choices{"path", "row", "global"},
        "which edges lose pheromone; path: as published");
      v("importance", importance, Choices{"none", "propensity"},
        "deposit divided by the path's propensity or not");
      v("ability", ability, Choices{"prior", "measured"},
        "ability in the heuristic: configured, or utility as seen");
      v("optimism", optimism, R{0, 100},
        "times sqrt(log N / n) added to measured ability; not in the paper");
      v("rho_by_intent", rho_by_intent, Range<bool>{false, true},
        "specialist t evaporates by rho * w_t");
      v("normalise_rows", normalise_rows, Range<bool>{false, true},
        "specialists' rows scaled to mean 1 before they are fused");
      v("seed", seed, Range<int64_t>{0, int64_t{1} << 62}, "of the draws");
      utility.VisitFields(v);
    }
  };
  struct Plan : WalkPlan {
    // Where these parts of the state begin, after tau. Relative pheromone has evidence in place of
    // arms and abilities.
    int64_t arms = 0, ability = 0, counts = 0;
  };
  static absl::StatusOr<AmroS> Create(const Config& c) {
    SLUICE_RETURN_IF_ERROR(CheckUsed(c));
    if (c.tau_max > 0 && c.tau_min > c.tau_max) {
      return absl::InvalidArgumentError(
          absl::StrCat("tau_min=", c.tau_min, " is above tau_max=", c.tau_max));
    }
    if (c.base_cost + c.epsilon <= 0) {
      return absl::InvalidArgumentError(
          "base_cost and epsilon are both 0: a free answer would deposit infinity");
    }
    return AmroS(c);
  }

  absl::StatusOr<Plan> MakePlan(std::shared_ptr<const AgentGraph> g) const {
    Plan p{WalkPlan::Of(std::move(g)), 0, 0, 0};
    const Layout& l = p.layout;
    p.arms = l.tasks * l.edges;
    if (relative()) {
      p.sums = RelativePheromone::sums(l);
      p.counts = p.ability = p.arms + RelativePheromone::evidence(l);
      p.state = p.counts + l.tasks;
      return p;
    }
    const ArmTable arms(l);
    p.ability = p.arms + arms.cells();
    p.counts = p.ability + l.tasks * l.agents;
    p.state = p.counts + l.tasks;
    p.sums = kColumns * l.tasks * l.edges + arms.cells();
    return p;
  }
  void InitialState(const Plan& p, absl::Span<double> state) const {
    std::fill(state.begin(), state.end(), 0.0);
    if (!relative()) std::fill_n(state.begin(), p.arms, Bounded(config_.tau0));
    Derive(p, state);
  }

  absl::Status Run(const Plan& p, absl::Span<const double> state, const AgentRequest& q,
                   AgentDecision& d, AgentTrace* trace) const {
    const Layout& l = p.layout;
    return Walk(l, static_cast<uint64_t>(config_.seed), q, d, trace,
                [&](const Stage& s, Weights& w) {
                  double evidence = 0;
                  for (int t = 0; t < l.tasks; ++t) {
                    const double wt = q.intent[t];
                    if (wt <= 0) continue;
                    const double* tau = &state[t * l.edges + s.first_edge];
                    const double scale = config_.normalise_rows ? wt * RowScale(s, tau) : wt;
                    for (int j = 0; j < s.size; ++j) w.tau[j] += scale * tau[j];
                    if (relative()) {
                      for (int j = 0; j < s.size; ++j) w.eta[j] += wt * config_.ability_weight;
                    } else if (config_.ability_weight > 0) {
                      const double* ability = &state[p.ability + t * l.agents + s.first_agent];
                      AddNormalised(s, wt * config_.ability_weight, ability, w.eta.data());
                    }
                    evidence += wt * state[p.counts + t];
                  }
                  AddLive(p, s, q, w.eta.data());
                  Weigh(s, w);
                  w.q0 = config_.anneal > 0
                             ? 1 - (1 - config_.q0) * config_.anneal / (config_.anneal + evidence)
                             : config_.q0;
                });
  }

  void Observe(const Plan& p, const AgentOutcome& o, std::vector<SumDelta>& out) const {
    const Layout& l = p.layout;
    if (relative()) return Relative(p).Observe(o, out);
    ArmTable(l).Observe(kColumns * l.tasks * l.edges, o, out);
    if (!o.accepted) return;  // the gate: no pheromone moves
    const UtilityConfig& u = config_.utility;
    const double f =
        config_.base_cost + u.cost_weight * o.cost_usd + u.latency_weight * o.latency_s;
    double amount = config_.deposit / (f + config_.epsilon);
    if (config_.importance == Importance::kPropensity) {
      amount *= o.propensity > 0 ? std::min(1 / o.propensity, config_.clip) : config_.clip;
    }
    for (int t = 0; t < l.tasks; ++t) {
      const double w = o.intent[t];
      const double decay = std::log1p(-config_.rho * (config_.rho_by_intent ? w : 1.0));
      for (int s = 0; s < l.stages; ++s) {
        const int64_t edge = l.edge(s, o.path);
        if (edge < 0) continue;
        const uint32_t cell = static_cast<uint32_t>(kColumns * (t * l.edges + edge));
        out.push_back({cell + kVisits, ToSum(1)});
        out.push_back({cell + kDecay, ToSum(decay)});
        if (w > 0) out.push_back({cell + kDeposit, ToSum(w * amount)});
      }
    }
  }

  void Fold(const Plan& p, absl::Span<const int64_t> sums, absl::Span<double> state) const {
    const Layout& l = p.layout;
    if (relative()) {
      Relative(p).Fold(sums, state.subspan(p.arms, p.counts - p.arms));
    } else {
      FoldDeposits(p, sums, state);
      ArmTable(l).Fold(config_.utility, sums.subspan(kColumns * l.tasks * l.edges),
                       state.subspan(p.arms, p.ability - p.arms));
    }
    Derive(p, state);
  }

 private:
  enum Column : uint32_t { kVisits, kDecay, kDeposit, kColumns };
  struct Batch {
    double visits = 0, decay = 0, deposit = 0;  // decay: sum of log(1 - rho)
    void Add(const int64_t* cell) {
      visits += FromSum(cell[kVisits]);
      decay += FromSum(cell[kDecay]);
      deposit += FromSum(cell[kDeposit]);
    }
    // What is left of a deposit, averaged over its place among the visits: 1 for a single one.
    double MeanDecay() const {
      const double each = std::exp(decay / visits);
      return visits <= 1 || each >= 1 ? 1.0 : (1 - std::exp(decay)) / ((1 - each) * visits);
    }
  };
  explicit AmroS(const Config& c) : config_(c) {}

  bool relative() const { return config_.pheromone == Pheromone::kRelative; }
  RelativePheromone Relative(const Plan& p) const {
    return {config_.relative, config_.utility, *p.graph, p.layout};
  }
  // Settings of the other kind of pheromone must stand at their defaults: they would do nothing.
  static absl::Status CheckUsed(const Config& c) {
    const bool relative = c.pheromone == Pheromone::kRelative;
    const std::vector<absl::string_view> unused =
        relative ? std::vector<absl::string_view>{"rho",           "deposit",       "base_cost",
                                                  "epsilon",       "tau0",          "tau_min",
                                                  "tau_max",       "clip",          "evaporate",
                                                  "importance",    "ability",       "optimism",
                                                  "rho_by_intent", "normalise_rows"}
                 : std::vector<absl::string_view>{"sharpen", "share", "alarm"};
    const std::string given = PrintConfig(c);
    const std::string normal = PrintConfig(Config{});
    const std::vector<absl::string_view> settings = absl::StrSplit(given, ',');
    const std::vector<absl::string_view> defaults = absl::StrSplit(normal, ',');
    for (size_t i = 0; i < settings.size(); ++i) {
      const absl::string_view name = settings[i].substr(0, settings[i].find('='));
      if (settings[i] != defaults[i] &&
          std::find(unused.begin(), unused.end(), name) != unused.end())
        return absl::InvalidArgumentError(absl::StrCat(
            settings[i], " does nothing with pheromone=", relative ? "relative" : "published",
            "; leave it out"));
    }
    return absl::OkStatus();
  }

  void FoldDeposits(const Plan& p, absl::Span<const int64_t> sums, absl::Span<double> state) const {
    const Layout& l = p.layout;
    for (int t = 0; t < l.tasks; ++t) {
      for (int s = 0; s < l.stages; ++s) {
        const int rows = s == 0 ? 1 : l.size[s - 1], n = l.size[s];
        const int64_t first = t * l.edges + l.first_edge[s];
        Batch stage;
        for (int64_t e = first; e < first + int64_t{rows} * n; ++e) stage.Add(&sums[kColumns * e]);
        if (stage.visits == 0) continue;
        for (int r = 0; r < rows; ++r) {
          Batch row;
          for (int j = 0; j < n; ++j) row.Add(&sums[kColumns * (first + r * n + j)]);
          for (int j = 0; j < n; ++j) {
            const int64_t e = first + r * n + j;
            Batch b;
            b.Add(&sums[kColumns * e]);
            const double deposit = b.deposit;
            if (config_.evaporate == Evaporate::kRow) b = row;
            if (config_.evaporate == Evaporate::kGlobal) b = stage;
            if (b.visits == 0) continue;
            state[e] = Bounded(state[e] * std::exp(b.decay) + deposit * b.MeanDecay());
          }
        }
      }
    }
  }

  // Pheromone stays positive whatever evaporates: a floor far below any that matters, and the
  // bounds where they are set.
  double Bounded(double tau) const {
    tau = std::max({tau, config_.tau_min, 1e-200});
    return config_.tau_max > 0 ? std::min(tau, config_.tau_max) : tau;
  }
  void Derive(const Plan& p, absl::Span<double> state) const {
    const Layout& l = p.layout;
    if (relative()) {
      const absl::Span<const double> evidence = state.subspan(p.arms, p.counts - p.arms);
      Relative(p).Derive(evidence, state.subspan(0, p.arms));
      for (int t = 0; t < l.tasks; ++t) state[p.counts + t] = Relative(p).Count(evidence, t);
      return;
    }
    const ArmTable arms(l);
    const absl::Span<const double> seen = state.subspan(p.arms, p.ability - p.arms);
    for (int t = 0; t < l.tasks; ++t) {
      double count = 0;
      for (int64_t a = 0; a < l.agents; ++a) count += seen[arms.cell(t, a, arms.kCount)];
      count /= l.stages;
      state[p.counts + t] = count;
      for (int64_t a = 0; a < l.agents; ++a) {
        const Agent& agent = p.graph->agent(a);
        const auto e = arms.Of(config_.utility, agent, seen, t, a);
        const double prior = agent.ability.empty() ? 0.5 : agent.ability[t];
        const double bonus =
            config_.optimism * std::sqrt(std::log1p(count) / (e.count + config_.utility.prior));
        state[p.ability + t * l.agents + a] =
            config_.ability == Ability::kMeasured ? e.utility + bonus : prior;
      }
    }
  }
  static double RowScale(const Stage& s, const double* tau) {
    double sum = 0;
    for (int j = 0; j < s.size; ++j) sum += tau[j];
    return s.size / sum;
  }
  using Values = std::array<double, kMaxStageAgents>;  // of a stage's candidates
  // eta_j += scale * (x_j scaled to [0, 1] over the open candidates); all equal: 1.
  static void AddNormalised(const Stage& s, double scale, const double* x, double* eta) {
    double lo = INFINITY, hi = -INFINITY;
    for (int j = 0; j < s.size; ++j) {
      if (!s.open[j]) continue;
      lo = std::min(lo, x[j]);
      hi = std::max(hi, x[j]);
    }
    if (s.available < s.size) {
      for (int j = 0; j < s.size; ++j) {
        if (s.open[j]) eta[j] += hi > lo ? scale * ((x[j] - lo) / (hi - lo)) : scale;
      }
    } else if (hi > lo) {
      const double per = scale / (hi - lo);
      for (int j = 0; j < s.size; ++j) eta[j] += per * (x[j] - lo);
    } else {
      for (int j = 0; j < s.size; ++j) eta[j] += scale;
    }
  }
  void AddLive(const Plan& p, const Stage& s, const AgentRequest& q, double* eta) const {
    const double eps = config_.live_epsilon;
    const std::vector<Agent>& agents = p.graph->stages[s.index];
    const AgentLive* live = q.live.empty() ? nullptr : &q.live[s.first_agent];
    Values x;
    if (config_.load_weight > 0) {
      for (int j = 0; j < s.size; ++j) x[j] = 1 / ((live == nullptr ? 0 : live[j].load) + eps);
      AddNormalised(s, config_.load_weight, x.data(), eta);
    }
    if (config_.speed_weight > 0) {
      for (int j = 0; j < s.size; ++j) {
        const double seen = live == nullptr ? 0 : live[j].latency_s;
        x[j] = 1 / ((seen > 0 ? seen : agents[j].latency_s) + eps);
      }
      AddNormalised(s, config_.speed_weight, x.data(), eta);
    }
    if (config_.price_weight > 0) {
      for (int j = 0; j < s.size; ++j) x[j] = 1 / (agents[j].cost_usd + eps);
      AddNormalised(s, config_.price_weight, x.data(), eta);
    }
  }
  // p = (tau / the largest open tau)^alpha * eta^beta.
  void Weigh(const Stage& s, Weights& w) const {
    double top = 0;
    for (int j = 0; j < s.size; ++j) {
      if (s.open[j]) top = std::max(top, w.tau[j]);
    }
    Values tau, eta;
    const double scale = 1 / top;  // tau is at least 1e-200
    for (int j = 0; j < s.size; ++j) tau[j] = scale * w.tau[j];
    std::copy_n(w.eta.begin(), s.size, eta.begin());
    Raise(config_.alpha, tau.data(), s.size);
    Raise(config_.beta, eta.data(), s.size);
    for (int j = 0; j < s.size; ++j) w.p[j] = tau[j] * eta[j];
  }
  // x^e, 0 where x is not above 0 but for the exponents 0, 1 and 2.
  static void Raise(double e, double* x, int n) {
    if (e == 0) {
      std::fill_n(x, n, 1.0);
    } else if (e == 2) {
      for (int j = 0; j < n; ++j) x[j] *= x[j];
    } else if (e != 1) {
      for (int j = 0; j < n; ++j) x[j] = x[j] <= 0 ? 0.0 : std::exp(e * std::log(x[j]));
    }
  }
  Config config_;
};
}  // namespace agent
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_AGENT_AMRO_S_AMRO_S_H_
