#include "sluice/runtime/service/outcomes.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/service/answer.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr double kMost = 1e6;  // USD and seconds of one outcome
// Numbers of decisions that the server did not make stand apart from its own by the highest bit,
// and of what was told of one without a grade by the next.
constexpr uint64_t kLabelled = uint64_t{1} << 63;
constexpr uint64_t kUngraded = uint64_t{1} << 62;

// What callers know it by.
uint64_t DecisionOf(const OutcomeRecord& o) {
  const uint64_t id = o.decision.id;
  return (id & kLabelled) != 0 ? id : id & ~kUngraded;
}

absl::Status CheckSum(absl::string_view what, double x) {
  if (x >= 0 && x <= kMost) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", x, " is outside [0, ", kMost, "]"));
}
// Who was called where nobody says.
void CallPath(OutcomeRecord& record) {
  const double share = 1.0 / static_cast<double>(std::max<size_t>(1, record.decision.path.size()));
  for (int32_t a : record.decision.path) {
    if (a >= 0) record.calls.push_back({a, false, 0, record.latency_s * share});
  }
}
}  // namespace

absl::Status Outcomes::Take(const v1::FeedbackRequest& request, const Team& team,
                            std::unique_ptr<FeedbackJob> job) {
  const auto n = static_cast<size_t>(request.outcomes_size());
  const uint32_t queue = team.settings().config.limits().feedback_queue();
  if (n > queue)
    return absl::InvalidArgumentError(
        absl::StrCat(n, " outcomes in one request; the feedback queue holds ", queue,
                     " (limits.feedback_queue): send smaller ones"));
  job->results.resize(n);
  job->reasons.resize(n);
  job->ids.resize(n);
  for (size_t i = 0; i < n; ++i) {
    absl::StatusOr<Checked> checked = Check(request.outcomes(static_cast<int>(i)), team);
    if (!checked.ok()) {
      ++tally_.rejected;
      job->reasons[i] = std::string(checked.status().message());
      continue;
    }
    job->ids[i] = DecisionOf(checked->record);
    job->slot.push_back(static_cast<int>(i));
    job->failures.push_back(std::move(checked->failures));
    job->outcomes.push_back(std::move(checked->record));
  }
  if (learner_.Submit(job)) return absl::OkStatus();
  for (const OutcomeRecord& o : job->outcomes) {
    if ((o.decision.id & kLabelled) != 0) decisions_.epochs().LabelledDone(false);
  }
  return absl::ResourceExhaustedError(absl::StrCat("the feedback queue holds ", learner_.queued(),
                                                   " of ", queue,
                                                   " outcomes; nothing was kept, send again"));
}

absl::StatusOr<DecisionRecord> Outcomes::FromLabelled(const v1::Labelled& l, const Team& team) {
  const AgentGraph& g = team.graph();
  if (!team.settings().config.learning().labelled())
    return absl::PermissionDeniedError(
        "labelled: outcomes without a receipt are taken only with learning { labelled: true }");
  if (l.key().empty()) return absl::InvalidArgumentError("labelled: no key");
  if (l.agents_size() != g.num_stages())
    return absl::InvalidArgumentError(absl::StrCat(
        "labelled: ", l.agents_size(), " agents, wanted one a stage = ", g.num_stages()));
  DecisionRecord d;
  double uniform = 1;
  for (int s = 0; s < g.num_stages(); ++s) {
    const std::optional<int32_t> agent = team.Find(l.agents(s));
    const int64_t first = team.first_agent(s);
    if (!agent || *agent < first || *agent >= first + g.stage_size(s))
      return absl::InvalidArgumentError(
          absl::StrCat("labelled: stage ", s, " has no agent '", l.agents(s), "'"));
    d.path.push_back(*agent);
    uniform /= g.stage_size(s);
  }
  v1::Query q;
  q.set_task(l.task());
  *q.mutable_intent() = l.intent();
  SLUICE_RETURN_IF_ERROR(decisions_.InferIntent(q, team.settings(), intent_));
  double sum = 0;
  for (double w : intent_) sum += w >= 0 ? w : NAN;
  if (intent_.size() != g.tasks.size() || !(std::abs(sum - 1) < 1e-6))
    return absl::InvalidArgumentError(absl::StrCat("labelled: intent has ", intent_.size(),
                                                   " entries that sum to ", sum, ", wanted ",
                                                   g.tasks.size(), " and 1"));
  for (float x : l.features()) {
    if (!std::isfinite(x))
      return absl::InvalidArgumentError(
          absl::StrCat("labelled: features: ", x, " is no finite number"));
  }
  if (!(l.propensity() >= 0 && l.propensity() <= 1))
    return absl::InvalidArgumentError(
        absl::StrCat("labelled: propensity ", l.propensity(), " is outside [0, 1]"));
  d.id = HashText(l.key()) | kLabelled;
  d.graph = team.policies().fingerprint;
  d.intent = intent_;
  d.propensity = l.propensity() > 0 ? l.propensity() : uniform;
  d.features.assign(l.features().begin(), l.features().end());
  d.unix_ms = team.now().unix_ms;
  return d;
}

absl::StatusOr<Outcomes::Checked> Outcomes::Check(const v1::Outcome& o, const Team& team) {
  Checked c;
  OutcomeRecord& record = c.record;
  const bool labelled = o.receipt().empty() && o.has_labelled();
  if (labelled) {
    SLUICE_ASSIGN_OR_RETURN(record.decision, FromLabelled(o.labelled(), team));
  } else {
    SLUICE_ASSIGN_OR_RETURN(record.decision, receipts_.Open(o.receipt()));
  }
  record.graded = o.has_quality();
  if (labelled && !record.graded) return absl::InvalidArgumentError("labelled: no quality");
  if (record.graded && !(o.quality() >= 0 && o.quality() <= 1))
    return absl::InvalidArgumentError(absl::StrCat("quality ", o.quality(), " is outside [0, 1]"));
  if (!record.graded && o.has_accepted())
    return absl::InvalidArgumentError("accepted is told without a quality");
  SLUICE_RETURN_IF_ERROR(CheckSum("cost_usd", o.cost_usd()));
  SLUICE_RETURN_IF_ERROR(CheckSum("latency_s", o.latency_s()));
  record.quality = o.quality();
  record.cost_usd = o.cost_usd();
  record.latency_s = o.latency_s();
  record.accepted = o.has_accepted()
                        ? o.accepted()
                        : record.graded && o.quality() >= team.settings().config.learning().gate();
  record.unix_ms = team.now().unix_ms;
  // Of an earlier team, in this one's numbers; else it is only kept.
  const bool ours = teams_.Translate(record);
  if (ours) SLUICE_RETURN_IF_ERROR(AddCalls(o, team, c));
  if (!record.graded) record.decision.id |= kUngraded;
  if (labelled) record.decision.epoch = decisions_.epochs().Labelled();
  return c;
}

absl::Status Outcomes::AddCalls(const v1::Outcome& o, const Team& team, Checked& c) const {
  OutcomeRecord& record = c.record;
  for (const v1::AgentReport& a : o.agents()) {
    const std::optional<int32_t> agent = team.Find(a.agent());
    if (!agent) return absl::InvalidArgumentError(absl::StrCat("no agent '", a.agent(), "'"));
    const std::string whose = absl::StrCat("agent '", a.agent(), "': ");
    SLUICE_RETURN_IF_ERROR(CheckSum(absl::StrCat(whose, "latency_s"), a.latency_s()));
    SLUICE_RETURN_IF_ERROR(CheckSum(absl::StrCat(whose, "cost_usd"), a.cost_usd()));
    record.calls.push_back({*agent, a.failed(), a.cost_usd(), a.latency_s()});
    c.failures.push_back(a.why());
  }
  const bool told = ungraded_.contains(record.decision.id);
  if (o.agents().empty() && !told) CallPath(record);
  if (o.agents().empty() && told && o.cost_usd() > 0)
    for (int32_t a : record.decision.path) {
      if (a >= 0) record.calls.push_back({a, false, 0, 0});
    }
  ShareCost(o, team, record);
  return absl::OkStatus();
}

// What the outcome cost beyond its reports, among the calls that do not say: as their expected
// costs are to each other, or alike where none is known. A free agent pays nothing of another's.
void Outcomes::ShareCost(const v1::Outcome& o, const Team& team, OutcomeRecord& record) const {
  double rest = o.cost_usd();
  double expected = 0;
  size_t silent = 0;
  const auto says = [&](size_t i) {
    return i < static_cast<size_t>(o.agents_size()) && o.agents(static_cast<int>(i)).has_cost_usd();
  };
  const auto configured = [&](size_t i) {
    return team.graph().agent(record.calls[i].agent).cost_usd;
  };
  for (size_t i = 0; i < record.calls.size(); ++i) {
    if (says(i)) {
      rest -= record.calls[i].cost_usd;
      continue;
    }
    expected += configured(i);
    ++silent;
  }
  if (silent == 0) {
    // The reports say all; the sum is theirs.
    record.cost_usd = 0;
    for (const OutcomeRecord::Call& call : record.calls) record.cost_usd += call.cost_usd;
    if (record.calls.empty()) record.cost_usd = o.cost_usd();
    return;
  }
  if (!(rest > 0)) return;
  for (size_t i = 0; i < record.calls.size(); ++i) {
    if (says(i)) continue;
    const double share =
        expected > 0 ? configured(i) / expected : 1.0 / static_cast<double>(silent);
    record.calls[i].cost_usd = rest * share;
  }
}

void Outcomes::RememberUngraded(uint64_t decision) {
  if (!ungraded_.insert(decision).second) return;
  ungraded_order_.push_back(decision);
  if (ungraded_order_.size() <= kMaxUngraded) return;
  ungraded_.erase(ungraded_order_.front());
  ungraded_order_.pop_front();
}

void Outcomes::Notice(const OutcomeRecord& o, const std::vector<std::string>& failures,
                      Team& team) {
  tally_.settled += 1;
  tally_.now.settled += 1;
  tally_.cost_usd += o.cost_usd;
  tally_.now.cost_usd += o.cost_usd;
  tally_.now.latency_s += o.latency_s;
  if (o.graded) {
    tally_.graded += 1;
    tally_.now.graded += 1;
    tally_.quality += o.quality;
    tally_.now.quality += o.quality;
  } else {
    RememberUngraded(DecisionOf(o));
  }
  const bool labelled = (o.decision.id & kLabelled) != 0;  // says nothing of how agents do now
  if (!labelled && o.decision.graph == team.policies().fingerprint) team.Ended(o, failures);
}

void Outcomes::Answer(const FeedbackJob& job, Team& team, v1::Response& r) {
  using Result = FeedbackJob::Result;
  r.set_request_id(job.request_id);
  for (size_t i = 0; i < job.outcomes.size(); ++i) {
    const bool fresh =
        job.status.ok() && job.results[static_cast<size_t>(job.slot[i])] == Result::kApplied;
    if ((job.outcomes[i].decision.id & kLabelled) != 0) decisions_.epochs().LabelledDone(fresh);
    if (fresh) Notice(job.outcomes[i], job.failures[i], team);
  }
  if (!job.status.ok()) {
    ++tally_.overloaded;
    SetError(r.mutable_error(), v1::OVERLOADED,
             absl::StrCat("nothing was kept, send again: ", job.status.message()));
    return;
  }
  for (size_t i = 0; i < job.results.size(); ++i) {
    v1::FeedbackResult& result = *r.mutable_feedback()->add_results();
    result.set_decision_id(job.ids[i]);
    result.set_status(static_cast<v1::FeedbackResult::Status>(job.results[i]));
    result.set_reason(job.reasons[i]);
    tally_.feedbacks += job.results[i] == Result::kApplied;
    tally_.duplicates += job.results[i] == Result::kDuplicate;
    tally_.now.feedbacks += job.results[i] == Result::kApplied;
  }
}

void Outcomes::Settle(Team& team) {
  for (const DecisionRecord& d : learner_.TakeSettled()) {
    if (d.graph == team.policies().fingerprint && decisions_.Made(d.id & ~kUngraded))
      team.Settled(d);
  }
}
SLUICE_END_NAMESPACE
