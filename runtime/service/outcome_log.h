#ifndef SLUICE_RUNTIME_SERVICE_OUTCOME_LOG_H_
#define SLUICE_RUNTIME_SERVICE_OUTCOME_LOG_H_
// What agents answered to queries, as a table: a row a query, columns of every agent. What a cell
// does not tell is unknown, never zero.
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/agent_router.h"

SLUICE_BEGIN_NAMESPACE
// What is not told, as the records of outcomes have it.
inline double ZeroIfUnknown(double x) { return std::isnan(x) ? 0 : x; }
// Of numbers that may be unknown; 0 where none is told.
class MeanOfTold {
 public:
  void Add(double x) {
    sum_ += ZeroIfUnknown(x);
    n_ += !std::isnan(x);
  }
  double value() const { return n_ > 0 ? sum_ / n_ : 0; }

 private:
  double sum_ = 0;
  double n_ = 0;
};

struct OutcomeLog {
  // What a reader weighs of an answer beside its quality.
  struct Needs {
    bool cost = false;
    bool latency = false;
  };
  struct Row {
    std::string id;
    int task = 0;
    std::vector<double> intent;  // [tasks]; empty: the file has none
    std::vector<float> features;
    // [agents]; NaN: not told.
    std::vector<double> quality, cost_usd, latency_s;
    // Whether every agent's quality is told, and what else is needed.
    bool Tells(const Needs& needs) const;
  };
  std::vector<std::string> tasks, agents;
  std::vector<Row> rows;

  // The rows that tell all that is needed; an error where none is left. Whoever compares agents
  // needs these: an agent that answered only what it was asked cannot be compared over all queries.
  absl::StatusOr<OutcomeLog> Complete(const Needs& needs) const;
  // Qualities that are not told, over all rows and agents.
  int64_t missing() const;
  // One stage; costs and latencies are the means of those told, abilities `ability`.
  std::shared_ptr<AgentGraph> Graph(double ability) const;
};

// CSV (plain or gzip, RFC 4180) with a header: id, task, then columns intent:TASK and feature:N
// (optional), quality:AGENT, cost_usd:AGENT, latency_s:AGENT. Qualities lie in [0, 1], the others
// are not negative; an empty cell of these three, and a latency of 0, is not told. Empty tasks,
// intents and features, columns given twice and columns of an agent without quality are errors by
// line and column.
absl::StatusOr<OutcomeLog> LoadOutcomeLog(const std::string& path);
absl::StatusOr<OutcomeLog> ParseOutcomeLog(absl::string_view csv);
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_OUTCOME_LOG_H_
