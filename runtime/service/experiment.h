#ifndef SLUICE_RUNTIME_SERVICE_EXPERIMENT_H_
#define SLUICE_RUNTIME_SERVICE_EXPERIMENT_H_
// The experiment of a running server. Experiment assigns and is the serving thread's;
// ExperimentBook keeps what outcomes say and is the learner's, so it outlives the process wherever
// outcomes do.
#include <array>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_format.h"
#include "sluice/policies/experiment/assignment.h"
#include "sluice/policies/experiment/sequential.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/service/config.h"
#include "sluice/runtime/store/record.h"
#include "sluice/v1/sidecar.pb.h"

SLUICE_BEGIN_NAMESPACE
// Names an experiment with its arms and weights; never 0. Another exposure or guardrail is the same
// experiment.
inline uint32_t ExperimentId(const v1::ExperimentConfig& config) {
  if (config.name().empty()) return 0;
  std::string text = config.name();
  for (const v1::ArmConfig& a : config.arm())
    absl::StrAppend(&text, "\n", a.policy(), "\n", a.has_weight() ? a.weight() : 1.0);
  return static_cast<uint32_t>(HashText(text)) | 1u;
}

// Whether a change of the configuration would move units of a running experiment: the same name
// with other arms or weights. What is changed so is another experiment, and needs a name of its
// own, which splits units anew.
inline bool Reweights(const v1::ExperimentConfig& was, const v1::ExperimentConfig& now) {
  return !was.name().empty() && was.name() == now.name() && was.arm_size() > 0 &&
         ExperimentId(was) != ExperimentId(now);
}

class Experiment {
 public:
  void Adopt(const v1::ExperimentConfig& config) {
    if (config.SerializeAsString() == config_.SerializeAsString()) return;
    config_ = config;
    assignment_.reset();
    shadows_.clear();
    for (const std::string& name : config.shadow()) shadows_.push_back({name, 0, 0});
    id_ = ExperimentId(config);
    if (id_ == 0) return;
    absl::StatusOr<ArmAssignment> made = MakeAssignment(config);
    if (!made.ok()) return;  // settings were checked before
    assignment_ = *std::move(made);
  }
  bool running() const { return assignment_.has_value(); }
  uint32_t id() const { return id_; }
  struct Assigned {
    const std::string* policy;
    int arm;
    bool counts;  // the unit takes part
  };
  // `stopped`: arms whose units get the control; empty: none.
  Assigned Assign(absl::string_view unit, absl::Span<const uint8_t> stopped) const {
    const std::optional<int> taking = assignment_->Taking(unit);
    const auto at = static_cast<size_t>(taking.value_or(0));
    const bool counts = taking.has_value() && !(at < stopped.size() && stopped[at] != 0);
    const int arm = counts ? *taking : 0;
    return {&assignment_->arms()[arm].name, arm, counts};
  }
  struct Shadow {
    std::string policy;
    uint64_t decisions, same;
  };
  std::vector<Shadow>& shadows() { return shadows_; }
  const std::vector<Shadow>& shadows() const { return shadows_; }

 private:
  v1::ExperimentConfig config_;
  std::optional<ArmAssignment> assignment_;
  std::vector<Shadow> shadows_;
  uint32_t id_ = 0;
};

class ExperimentBook {
 public:
  static constexpr size_t kMetrics = 4;  // as v1::Metric numbers them
  static constexpr size_t kMaxUnits = size_t{1} << 20;

  // Keeps what was counted when it is still the same experiment. Another one starts from nothing
  // but what its units did before they were in any arm: what they did in one is its effect, not
  // their past. Under the same name with other weights most units are in the arm that they were in;
  // they are not counted twice.
  void Adopt(const v1::ExperimentConfig& config) {
    config_ = config;
    const uint32_t id = ExperimentId(config);
    const uint64_t name = HashText(config.name());
    const bool same_split = name == name_;
    if (id == id_ && arms_.size() == static_cast<size_t>(config.arm_size())) return;
    id_ = id;
    name_ = name;
    for (auto& [hash, u] : units_) {
      u.spent = same_split && (u.spent || u.n > 0);
      u.n = 0;
      u.y = {};
    }
    arms_.assign(id == 0 ? 0 : static_cast<size_t>(config.arm_size()), Arm{});
  }

  void Learn(const OutcomeRecord& o) {
    const DecisionRecord& d = o.decision;
    if (d.unit == 0) return;
    auto at = units_.find(d.unit);
    if (at == units_.end()) {
      if (units_.size() >= kMaxUnits) {
        ++left_out_;
        return;
      }
      at = units_.emplace(d.unit, Unit{}).first;
    }
    Unit& u = at->second;
    const std::array<double, kMetrics> value = {o.quality, o.accepted ? 1.0 : 0.0, o.cost_usd,
                                                o.latency_s};
    if (u.spent) return;
    if (id_ == 0 || d.experiment != id_ || d.arm >= arms_.size()) {
      // What a unit does beside its arm says nothing of either, and what it did in an arm of
      // another experiment may come late.
      if (u.n > 0 || d.experiment != 0) return;
      u.before_n += 1;
      for (size_t m = 0; m < kMetrics; ++m) u.before[m] += value[m];
      return;
    }
    Arm& arm = arms_[d.arm];
    for (size_t m = 0; m < kMetrics; ++m) {
      // Any function of the time before adjusts without bias; this one is calm for units with a
      // short past.
      const double x = (u.before[m] + (m < 2 ? 0.5 : 0.0)) / (u.before_n + 1);
      arm.metric[m].Add(u.y[m], u.n, x, value[m]);
      u.y[m] += value[m];
    }
    u.n += 1;
    for (size_t i = d.arm == 0 ? 1 : d.arm; i < (d.arm == 0 ? arms_.size() : d.arm + size_t{1});
         ++i)
      Judge(i);
  }

  // One a arm: 1 when a guardrail stopped it.
  std::vector<uint8_t> stopped() const {
    std::vector<uint8_t> s;
    for (const Arm& a : arms_) s.push_back(a.stopped.empty() ? 0 : 1);
    return s;
  }
  const std::string& why(size_t arm) const { return arms_[arm].stopped; }

  void Report(v1::ExperimentResponse& out) const {
    out.set_name(config_.name());
    std::vector<int64_t> counts;
    std::vector<double> weights;
    for (size_t i = 0; i < arms_.size(); ++i) {
      const Arm& a = arms_[i];
      const v1::ArmConfig& c = config_.arm(static_cast<int>(i));
      v1::ArmResult& r = *out.add_arms();
      r.set_policy(c.policy());
      r.set_weight(c.has_weight() ? c.weight() : 1);
      r.set_units(static_cast<uint64_t>(a.metric[0].units()));
      r.set_outcomes(static_cast<uint64_t>(a.metric[0].outcomes()));
      r.set_p(a.p);
      r.set_stopped(a.stopped);
      for (size_t m = 0; m < kMetrics; ++m) {
        double kept = 1;
        const Difference d = DifferenceOfMeans(arms_[0].metric[m], a.metric[m], &kept);
        v1::MetricResult& q = *r.add_metrics();
        q.set_metric(static_cast<v1::Metric>(m));
        q.set_mean(a.metric[m].mean());
        q.set_gain(i == 0 ? 0 : d.value);
        q.set_half_interval(i == 0 ? 0 : SequenceHalfWidth(d, 0.05));
        q.set_variance_kept(i == 0 ? 1 : kept);
      }
      if (a.stopped.empty())  // a stopped arm gets no new units
      {
        counts.push_back(a.metric[0].units());
        weights.push_back(r.weight());
      }
    }
    out.set_sample_ratio_p(counts.empty() ? 1 : SampleRatioP(counts, weights));
    out.set_readable(out.sample_ratio_p() >= kSampleRatioAlarm);
    out.set_units_left_out(left_out_);
  }

  std::string Serialize() const {
    using record_internal::Put;
    std::string out;
    Put(out, uint8_t{2});
    Put(out, id_);
    Put(out, name_);
    Put(out, left_out_);
    Put(out, static_cast<uint32_t>(arms_.size()));
    for (Arm a : arms_) {
      Put(out, a.p);
      Put(out, static_cast<uint32_t>(a.stopped.size()));
      out.append(a.stopped);
      for (ClusteredMetric& m : a.metric) m.VisitSums([&](double s) { Put(out, s); });
    }
    Put(out, static_cast<uint64_t>(units_.size()));
    for (const auto& [hash, u] : units_) {
      Put(out, hash);
      Put(out, u.n);
      Put(out, u.before_n);
      Put(out, static_cast<uint8_t>(u.spent));
      for (size_t m = 0; m < kMetrics; ++m) {
        Put(out, u.y[m]);
        Put(out, u.before[m]);
      }
    }
    return out;
  }
  absl::Status Parse(absl::string_view bytes) {
    record_internal::Reader r(bytes);
    ExperimentBook read;
    const auto version = r.Get<uint8_t>();
    read.id_ = r.Get<uint32_t>();
    read.name_ = r.Get<uint64_t>();
    read.left_out_ = r.Get<uint64_t>();
    const auto arms = r.Get<uint32_t>();
    if (r.failed() || version != 2 || arms > 250)
      return absl::DataLossError("experiment: no snapshot of version 2");
    for (uint32_t i = 0; i < arms; ++i) {
      Arm a;
      a.p = r.Get<double>();
      std::vector<char> why;
      r.GetMany<char>(r.Get<uint32_t>(), why);
      a.stopped.assign(why.begin(), why.end());
      for (ClusteredMetric& m : a.metric) m.VisitSums([&](double& s) { s = r.Get<double>(); });
      read.arms_.push_back(std::move(a));
    }
    const auto units = r.Get<uint64_t>();
    for (uint64_t i = 0; i < units && !r.failed(); ++i) {
      const auto hash = r.Get<uint64_t>();
      Unit u;
      u.n = r.Get<double>();
      u.before_n = r.Get<double>();
      u.spent = r.Get<uint8_t>() != 0;
      for (size_t m = 0; m < kMetrics; ++m) {
        u.y[m] = r.Get<double>();
        u.before[m] = r.Get<double>();
      }
      read.units_.emplace(hash, u);
    }
    if (r.failed() || !r.rest().empty())
      return absl::DataLossError("experiment: snapshot has the wrong length");
    *this = std::move(read);
    return absl::OkStatus();
  }

 private:
  struct Unit {
    double n = 0, before_n = 0;
    std::array<double, kMetrics> y{}, before{};
    bool spent = false;  // was in an arm of this split under other weights: counts no more
  };
  struct Arm {
    std::array<ClusteredMetric, kMetrics> metric;
    double p = 1;
    std::string stopped;
  };
  void Judge(size_t i) {
    Arm& arm = arms_[i];
    const Arm& control = arms_[0];
    MixtureTest test(config_.has_effect() ? config_.effect() : 0.05);
    test.Restore(arm.p);
    arm.p = test.Update(DifferenceOfMeans(control.metric[0], arm.metric[0]));
    if (!arm.stopped.empty()) return;
    for (const v1::GuardrailConfig& g : config_.guardrail()) {
      const auto m = static_cast<size_t>(g.metric());
      const Difference d = DifferenceOfMeans(control.metric[m], arm.metric[m]);
      if (d.units < 100) continue;
      const double half = SequenceHalfWidth(d, 0.05 / config_.guardrail_size());
      const double worse =
          g.metric() == v1::QUALITY || g.metric() == v1::ACCEPTED ? -d.value : d.value;
      if (worse - half <= g.worse_by()) continue;
      arm.stopped =
          absl::StrFormat("%s worse by %.4g +- %.2g, allowed %.4g, after %d units",
                          v1::Metric_Name(g.metric()), worse, half, g.worse_by(), d.units);
      return;
    }
  }

  v1::ExperimentConfig config_;
  uint32_t id_ = 0;
  uint64_t name_ = 0;
  uint64_t left_out_ = 0;
  std::vector<Arm> arms_;
  std::unordered_map<uint64_t, Unit> units_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_EXPERIMENT_H_
