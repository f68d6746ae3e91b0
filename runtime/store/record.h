#ifndef SLUICE_RUNTIME_STORE_RECORD_H_
#define SLUICE_RUNTIME_STORE_RECORD_H_
// One learned-from decision as bytes: what was decided (the receipt that a caller gives back) and
// how it ended. Little- endian, no padding; the reader checks every length.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
struct DecisionRecord {
  uint64_t id = 0, epoch = 0;
  uint64_t graph = 0;   // fingerprint: numbers of agents mean nothing in another graph
  uint32_t policy = 0;  // index in the configuration, for reports
  double propensity = 1;
  uint64_t unit = 0;        // hash of the user or session; 0: none was named
  uint32_t experiment = 0;  // which one decided the policy; 0: none
  uint8_t arm = 0;
  std::vector<int32_t> path;
  std::vector<double> intent;
  std::vector<float> features;
  int64_t unix_ms = 0;           // when it was decided
  bool kept = false;             // a session kept its agents: no policy chose them
  std::vector<int32_t> blocked;  // agents that could not be chosen
  std::vector<uint64_t> payers;  // hashes of the key and the tags whose budgets pay
};
struct OutcomeRecord {
  struct Call {
    int32_t agent = 0;
    bool failed = false;
    double cost_usd = 0;
    double latency_s = 0;
  };
  DecisionRecord decision;
  bool graded = true;  // false: only cost, latency and failures were told
  double quality = 0;
  bool accepted = false;
  double cost_usd = 0, latency_s = 0;
  int64_t unix_ms = 0;      // when it was taken
  std::vector<Call> calls;  // agents that were called; each agent's cost is settled here

  // What the path's own calls cost and took, [stages]; empty where no calls were told. A call that
  // was not made cost nothing.
  struct Shares {
    std::vector<double> cost_usd;
    std::vector<double> latency_s;
  };
  Shares shares() const {
    Shares s;
    if (calls.empty()) return s;
    s.cost_usd.assign(decision.path.size(), 0.0);
    s.latency_s.assign(decision.path.size(), 0.0);
    for (const Call& c : calls) {
      for (size_t i = 0; i < decision.path.size(); ++i) {
        if (decision.path[i] != c.agent) continue;
        s.cost_usd[i] += c.cost_usd;
        s.latency_s[i] += c.latency_s;
      }
    }
    return s;
  }
  // `shares` are borrowed.
  AgentOutcome view(const Shares& shares) const {
    AgentOutcome o;
    o.stage_cost_usd = shares.cost_usd;
    o.stage_latency_s = shares.latency_s;
    o.id = decision.id;
    o.intent = decision.intent;
    o.features = decision.features;
    o.path = decision.path;
    o.propensity = decision.propensity;
    o.quality = quality;
    o.accepted = accepted;
    o.cost_usd = cost_usd;
    o.latency_s = latency_s;
    return o;
  }
};

namespace record_internal {
template <class T>
void Put(std::string& out, T v) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}
// Puts one after the other where there is room for them.
class Writer {
 public:
  explicit Writer(char* to) : to_(to) {}
  template <class T>
  void Put(T v) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::memcpy(to_, &v, sizeof v);
    to_ += sizeof v;
  }
  template <class T, class U>
  void PutMany(const std::vector<U>& values) {
    for (U v : values) Put(static_cast<T>(v));
  }

 private:
  char* to_;
};
class Reader {
 public:
  explicit Reader(absl::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T Get() {
    T v{};
    if (bytes_.size() < sizeof v) {
      failed_ = true;
      return v;
    }
    std::memcpy(&v, bytes_.data(), sizeof v);
    bytes_.remove_prefix(sizeof v);
    return v;
  }
  template <class T, class U>
  void GetMany(size_t n, std::vector<U>& out) {
    if (bytes_.size() < n * sizeof(T)) {
      failed_ = true;
      return;
    }
    out.resize(n);
    for (U& x : out) x = static_cast<U>(Get<T>());
  }
  bool failed() const { return failed_; }
  absl::string_view rest() const { return bytes_; }

 private:
  absl::string_view bytes_;
  bool failed_ = false;
};
}  // namespace record_internal

// 1 had neither unit nor experiment; 2 ended with the decision's features, and outcomes had no
// time, grade or calls.
inline constexpr uint8_t kRecordVersion = 3;
inline constexpr int32_t kGone = 0xFFFF;  // of an agent that has left, -1 in memory
inline size_t DecisionBytes(const DecisionRecord& d) {
  constexpr size_t kFixed = sizeof kRecordVersion + sizeof d.id + sizeof d.epoch + sizeof d.graph +
                            sizeof d.policy + sizeof d.propensity + sizeof d.unit +
                            sizeof d.experiment + sizeof d.arm + 2 * sizeof(uint8_t) +
                            3 * sizeof(uint16_t) + sizeof d.unix_ms + sizeof(uint8_t);
  return kFixed + d.path.size() * sizeof(uint16_t) + d.intent.size() * sizeof(double) +
         d.features.size() * sizeof(float) + d.blocked.size() * sizeof(uint16_t) +
         d.payers.size() * sizeof(uint64_t);
}
inline void AppendDecision(const DecisionRecord& d, std::string& out) {
  const size_t at = out.size();
  out.resize(at + DecisionBytes(d));
  record_internal::Writer w(&out[at]);
  w.Put(kRecordVersion);
  w.Put(d.id);
  w.Put(d.epoch);
  w.Put(d.graph);
  w.Put(d.policy);
  w.Put(d.propensity);
  w.Put(d.unit);
  w.Put(d.experiment);
  w.Put(d.arm);
  w.Put(static_cast<uint8_t>(d.path.size()));
  w.Put(static_cast<uint16_t>(d.intent.size()));
  w.Put(static_cast<uint16_t>(d.features.size()));
  w.Put(static_cast<uint16_t>(d.blocked.size()));
  w.Put(static_cast<uint8_t>(d.payers.size()));
  w.PutMany<uint16_t>(d.path);
  w.PutMany<double>(d.intent);
  w.PutMany<float>(d.features);
  w.PutMany<uint16_t>(d.blocked);
  w.PutMany<uint64_t>(d.payers);
  w.Put(d.unix_ms);
  w.Put(static_cast<uint8_t>(d.kept));
}
namespace record_internal {
inline absl::Status ReadDecision(Reader& r, DecisionRecord& d, uint8_t& version) {
  version = r.Get<uint8_t>();
  if (!r.failed() && (version < 1 || version > kRecordVersion)) {
    return absl::InvalidArgumentError(
        absl::StrCat("receipt of version ", version, "; this server reads 1 to ", kRecordVersion));
  }
  d.id = r.Get<uint64_t>();
  d.epoch = r.Get<uint64_t>();
  d.graph = r.Get<uint64_t>();
  d.policy = r.Get<uint32_t>();
  d.propensity = r.Get<double>();
  if (version > 1) {
    d.unit = r.Get<uint64_t>();
    d.experiment = r.Get<uint32_t>();
    d.arm = r.Get<uint8_t>();
  }
  const size_t path = r.Get<uint8_t>();
  const size_t intent = version > 2 ? r.Get<uint16_t>() : r.Get<uint8_t>();
  const size_t features = r.Get<uint16_t>();
  const size_t blocked = version > 2 ? r.Get<uint16_t>() : 0;
  const size_t payers = version > 2 ? r.Get<uint8_t>() : 0;
  r.GetMany<uint16_t>(path, d.path);
  for (int32_t& a : d.path) {
    if (a == kGone) a = -1;
  }
  r.GetMany<double>(intent, d.intent);
  r.GetMany<float>(features, d.features);
  r.GetMany<uint16_t>(blocked, d.blocked);
  r.GetMany<uint64_t>(payers, d.payers);
  if (version > 2) {
    d.unix_ms = r.Get<int64_t>();
    d.kept = r.Get<uint8_t>() != 0;
  }
  if (r.failed()) return absl::InvalidArgumentError("receipt is cut short");
  if (!(d.propensity >= 0 && d.propensity <= 1 + 1e-9))
    return absl::InvalidArgumentError("receipt: propensity is no probability");
  for (double w : d.intent) {
    if (!(w >= 0 && w <= 1 + 1e-6))
      return absl::InvalidArgumentError("receipt: intent is no distribution");
  }
  return absl::OkStatus();
}
}  // namespace record_internal

// The whole text must be one decision.
inline absl::StatusOr<DecisionRecord> ParseDecision(absl::string_view bytes) {
  record_internal::Reader r(bytes);
  DecisionRecord d;
  uint8_t version = 0;
  SLUICE_RETURN_IF_ERROR(record_internal::ReadDecision(r, d, version));
  if (!r.rest().empty())
    return absl::InvalidArgumentError(
        absl::StrCat("receipt: ", r.rest().size(), " bytes too many"));
  return d;
}
inline std::string SerializeOutcome(const OutcomeRecord& o) {
  std::string out;
  AppendDecision(o.decision, out);
  using record_internal::Put;
  Put(out, o.quality);
  Put(out, static_cast<uint8_t>(o.accepted));
  Put(out, o.cost_usd);
  Put(out, o.latency_s);
  Put(out, static_cast<uint8_t>(o.graded));
  Put(out, o.unix_ms);
  Put(out, static_cast<uint16_t>(o.calls.size()));
  for (const OutcomeRecord::Call& c : o.calls) {
    Put(out, static_cast<uint16_t>(c.agent));
    Put(out, static_cast<uint8_t>(c.failed));
    Put(out, c.cost_usd);
    Put(out, c.latency_s);
  }
  return out;
}
inline absl::StatusOr<OutcomeRecord> ParseOutcome(absl::string_view bytes) {
  record_internal::Reader r(bytes);
  OutcomeRecord o;
  uint8_t version = 0;
  SLUICE_RETURN_IF_ERROR(record_internal::ReadDecision(r, o.decision, version));
  o.quality = r.Get<double>();
  o.accepted = r.Get<uint8_t>() != 0;
  o.cost_usd = r.Get<double>();
  o.latency_s = r.Get<double>();
  if (version > 2) {
    o.graded = r.Get<uint8_t>() != 0;
    o.unix_ms = r.Get<int64_t>();
    const size_t calls = r.Get<uint16_t>();
    for (size_t i = 0; i < calls && !r.failed(); ++i) {
      OutcomeRecord::Call c;
      c.agent = r.Get<uint16_t>();
      c.failed = r.Get<uint8_t>() != 0;
      c.cost_usd = r.Get<double>();
      c.latency_s = r.Get<double>();
      o.calls.push_back(c);
    }
  }
  if (r.failed() || !r.rest().empty())
    return absl::DataLossError("stored outcome has the wrong length");
  return o;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_STORE_RECORD_H_
