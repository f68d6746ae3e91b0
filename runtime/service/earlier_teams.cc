#include "sluice/runtime/service/earlier_teams.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// The agent's number in the team, by its id there or the one it had before; -1: none.
int32_t NumberOf(const std::string& id, int stage, const v1::ServerConfig& team) {
  int32_t number = 0;
  for (int s = 0; s < stage; ++s) number += team.stage(s).agent_size();
  int32_t renamed = -1;
  for (const v1::AgentConfig& a : team.stage(stage).agent()) {
    if (a.id() == id) return number;
    if (a.was() == id) renamed = number;
    ++number;
  }
  return renamed;
}
int32_t Renumbered(const std::vector<int32_t>& to, int32_t n) {
  return n >= 0 && static_cast<size_t>(n) < to.size() ? to[static_cast<size_t>(n)] : -1;
}
}  // namespace

std::string TeamKey(uint64_t fingerprint) { return absl::StrCat("team@", absl::Hex(fingerprint)); }

void EarlierTeams::Serve(const ServerSettings& now) {
  now_.Clear();
  *now_.mutable_task() = now.config.task();
  *now_.mutable_stage() = now.config.stage();
  *now_.mutable_policy() = now.config.policy();
  fingerprint_ = now.policies->fingerprint;
  kept_ = false;
  changes_.clear();
}

absl::Status EarlierTeams::Keep() {
  if (kept_) return absl::OkStatus();
  SLUICE_RETURN_IF_ERROR(
      store_.SaveSnapshot(TeamKey(fingerprint_), {0, now_.SerializeAsString()}));
  kept_ = true;
  return absl::OkStatus();
}

bool EarlierTeams::Translate(OutcomeRecord& o) {
  if (o.decision.graph == fingerprint_) return true;
  const Change& change = From(o.decision.graph);
  if (!change.known) return false;
  OutcomeRecord to = o;
  to.decision.graph = fingerprint_;
  int left = 0;
  for (int32_t& a : to.decision.path) {
    a = Renumbered(change.agent, a);
    left += a >= 0;
  }
  if (left == 0) return false;
  to.decision.intent.assign(static_cast<size_t>(now_.task_size()), 0.0);
  double told = 0;
  for (size_t t = 0; t < o.decision.intent.size(); ++t) {
    if (t >= change.task.size()) return false;
    if (change.task[t] < 0) continue;
    to.decision.intent[static_cast<size_t>(change.task[t])] += o.decision.intent[t];
    told += o.decision.intent[t];
  }
  if (!(told > 0)) return false;
  for (double& w : to.decision.intent) w /= told;
  std::erase_if(to.calls, [&](OutcomeRecord::Call& c) {
    c.agent = Renumbered(change.agent, c.agent);
    return c.agent < 0;
  });
  std::erase_if(to.decision.blocked, [&](int32_t& a) {
    a = Renumbered(change.agent, a);
    return a < 0;
  });
  o = std::move(to);
  return true;
}

const EarlierTeams::Change& EarlierTeams::From(uint64_t graph) {
  const auto [at, fresh] = changes_.try_emplace(graph);
  if (fresh) at->second.known = Read(graph, at->second).ok();
  return at->second;
}

absl::Status EarlierTeams::Read(uint64_t graph, Change& change) const {
  SLUICE_ASSIGN_OR_RETURN(const StoredSnapshot kept, store_.LoadSnapshot(TeamKey(graph)));
  v1::ServerConfig was;
  if (!was.ParseFromString(kept.bytes)) return absl::DataLossError("a team that cannot be read");
  if (was.stage_size() != now_.stage_size())
    return absl::FailedPreconditionError("another number of stages");
  for (int s = 0; s < was.stage_size(); ++s) {
    for (const v1::AgentConfig& a : was.stage(s).agent())
      change.agent.push_back(NumberOf(a.id(), s, now_));
  }
  for (const std::string& task : was.task()) {
    const auto at = std::find(now_.task().begin(), now_.task().end(), task);
    change.task.push_back(at == now_.task().end() ? -1
                                                  : static_cast<int32_t>(at - now_.task().begin()));
  }
  return absl::OkStatus();
}
SLUICE_END_NAMESPACE
