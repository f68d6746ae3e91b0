#include "sluice/runtime/service/outcome_log.h"

#include <csv.h>

#include <algorithm>
#include <cfloat>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace {
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// Reads a table record by record; the first gives the columns.
class LogReader {
 public:
  // `line`: on which the record ends, for errors.
  absl::Status ReadRecord(const std::vector<std::string>& cells, int64_t line) {
    line_ = line;
    return columns_.empty() ? ReadHeader(cells) : ReadRow(cells);
  }
  absl::StatusOr<OutcomeLog> Done() {
    if (columns_.empty()) return absl::InvalidArgumentError("no header");
    if (log_.rows.empty()) return absl::InvalidArgumentError("no rows");
    if (!intents_.empty() && intents_.size() != log_.tasks.size())
      return absl::InvalidArgumentError(
          absl::StrCat(intents_.size(), " intent columns for ", log_.tasks.size(), " tasks"));
    return std::move(log_);
  }

 private:
  enum Kind { kId, kTask, kIntent, kFeature, kQuality, kCost, kLatency };
  struct Column {
    Kind kind;
    size_t index;      // among the columns of its kind: which task, feature or agent
    std::string name;  // as the header has it
  };
  using Names = std::map<std::string, size_t>;

  absl::Status Bad(absl::string_view why) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", line_, ": ", why));
  }

  absl::Status ReadHeader(const std::vector<std::string>& cells) {
    std::set<std::string> seen;
    std::set<std::string> of_quality;
    for (const std::string& name : cells) {
      if (!seen.insert(name).second) return Bad(absl::StrCat("column '", name, "' is given twice"));
      SLUICE_RETURN_IF_ERROR(AddColumn(name));
      if (columns_.back().kind == kQuality) of_quality.insert(AgentOf(columns_.back()));
    }
    const bool has_task = std::any_of(columns_.begin(), columns_.end(),
                                      [](const Column& c) { return c.kind == kTask; });
    if (!has_task) return Bad("no column task");
    if (of_quality.empty()) return Bad("no column quality:AGENT");
    for (const Column& c : columns_) {
      if ((c.kind == kCost || c.kind == kLatency) && of_quality.count(AgentOf(c)) == 0)
        return Bad(absl::StrCat("column '", c.name,
                                "' of an agent without a column quality:", AgentOf(c)));
    }
    return absl::OkStatus();
  }
  const std::string& AgentOf(const Column& c) const { return log_.agents[c.index]; }
  absl::Status AddColumn(const std::string& name) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(name, absl::MaxSplits(':', 1));
    const std::string of(parts.second);
    const bool named = !of.empty();
    if (name == "id") {
      columns_.push_back({kId, 0, name});
    } else if (name == "task") {
      columns_.push_back({kTask, 0, name});
    } else if (parts.first == "intent" && named) {
      columns_.push_back({kIntent, IndexOf(of, intents_, log_.tasks), name});
    } else if (parts.first == "feature" && named) {
      columns_.push_back({kFeature, features_++, name});
    } else if (parts.first == "quality" && named) {
      columns_.push_back({kQuality, IndexOf(of, agents_, log_.agents), name});
    } else if (parts.first == "cost_usd" && named) {
      columns_.push_back({kCost, IndexOf(of, agents_, log_.agents), name});
    } else if (parts.first == "latency_s" && named) {
      columns_.push_back({kLatency, IndexOf(of, agents_, log_.agents), name});
    } else {
      return Bad(absl::StrCat("column '", name,
                              "'; known: id, task, intent:TASK, feature:N, quality:AGENT, "
                              "cost_usd:AGENT, latency_s:AGENT"));
    }
    return absl::OkStatus();
  }
  static size_t IndexOf(const std::string& name, Names& known, std::vector<std::string>& list) {
    const auto [at, fresh] = known.emplace(name, known.size());
    if (fresh) list.push_back(name);
    return at->second;
  }

  absl::Status ReadRow(const std::vector<std::string>& cells) {
    if (cells.size() != columns_.size())
      return Bad(
          absl::StrCat(cells.size(), " cells, the header has ", columns_.size(), " columns"));
    OutcomeLog::Row r;
    r.intent.resize(intents_.size());
    r.features.resize(features_);
    for (auto* v : {&r.quality, &r.cost_usd, &r.latency_s}) v->assign(agents_.size(), kUnknown);
    for (size_t i = 0; i < cells.size(); ++i) SLUICE_RETURN_IF_ERROR(ReadCell(cells[i], i, r));

    // Two rows never share a name by having none: outcomes are told apart by it.
    if (r.id.empty()) r.id = absl::StrCat("row ", log_.rows.size() + 1);
    double sum = 0;
    for (double w : r.intent) sum += w;
    if (!r.intent.empty() && sum <= 0) return Bad("intents that are all zero");
    for (double& w : r.intent) w /= sum;
    log_.rows.push_back(std::move(r));
    return absl::OkStatus();
  }
  absl::Status ReadCell(const std::string& cell, size_t i, OutcomeLog::Row& r) {
    const Column& column = columns_[i];
    switch (column.kind) {
      case kId:
        r.id = cell;
        return absl::OkStatus();
      case kTask:
        if (cell.empty()) return BadCell(cell, column, "wanted a name");
        r.task = TaskOf(cell);
        return absl::OkStatus();
      case kIntent:
        return ReadNumber(cell, column, 0, HUGE_VAL, r.intent[column.index]);
      case kFeature: {
        double x = 0;
        SLUICE_RETURN_IF_ERROR(ReadNumber(cell, column, -FLT_MAX, FLT_MAX, x));
        r.features[column.index] = static_cast<float>(x);
        return absl::OkStatus();
      }
      case kQuality:
        return ReadAnswer(cell, column, 1, r.quality[column.index]);
      case kCost:
        return ReadAnswer(cell, column, HUGE_VAL, r.cost_usd[column.index]);
      case kLatency:
        SLUICE_RETURN_IF_ERROR(ReadAnswer(cell, column, HUGE_VAL, r.latency_s[column.index]));
        if (r.latency_s[column.index] == 0) r.latency_s[column.index] = kUnknown;
        return absl::OkStatus();
    }
    return absl::OkStatus();
  }
  int TaskOf(absl::string_view name) {
    auto at = std::find(log_.tasks.begin(), log_.tasks.end(), name);
    if (at == log_.tasks.end()) at = log_.tasks.insert(log_.tasks.end(), std::string(name));
    return static_cast<int>(at - log_.tasks.begin());
  }

  // Of an agent's answer: may be empty, and is unknown then.
  absl::Status ReadAnswer(const std::string& cell, const Column& column, double most,
                          double& out) const {
    if (cell.empty()) return absl::OkStatus();
    return ReadNumber(cell, column, 0, most, out);
  }
  absl::Status ReadNumber(const std::string& cell, const Column& column, double least, double most,
                          double& out) const {
    double x = 0;
    if (!absl::SimpleAtod(cell, &x) || !std::isfinite(x))
      return BadCell(cell, column, "wanted a finite number");
    if (x < least || x > most)
      return BadCell(cell, column,
                     most == HUGE_VAL ? absl::StrCat("wanted at least ", least)
                                      : absl::StrCat("wanted ", least, " to ", most));
    out = x;
    return absl::OkStatus();
  }
  absl::Status BadCell(const std::string& cell, const Column& column,
                       absl::string_view wanted) const {
    return Bad(absl::StrCat("column '", column.name, "' is '", cell, "'; ", wanted));
  }

  OutcomeLog log_;
  std::vector<Column> columns_;
  Names agents_, intents_;
  size_t features_ = 0;
  int64_t line_ = 0;
};

// Gives the reader whole records; keeps the first error.
class Records {
 public:
  Records() { csv_init(&parser_, CSV_STRICT | CSV_STRICT_FINI); }
  ~Records() { csv_free(&parser_); }
  Records(const Records&) = delete;
  Records& operator=(const Records&) = delete;

  absl::Status Feed(absl::string_view line) {
    ++line_;
    const size_t read = csv_parse(&parser_, line.data(), line.size(), Field, Record, this);
    if (!status_.ok()) return status_;
    return read == line.size() ? absl::OkStatus() : Error();
  }
  absl::StatusOr<OutcomeLog> Done() {
    if (csv_fini(&parser_, Field, Record, this) != 0) return Error();
    if (!status_.ok()) return status_;
    return reader_.Done();
  }

 private:
  absl::Status Error() {
    return absl::InvalidArgumentError(
        absl::StrCat("line ", line_, ": ", csv_strerror(csv_error(&parser_))));
  }
  static void Field(void* text, size_t size, void* self) {
    static_cast<Records*>(self)->cells_.emplace_back(static_cast<const char*>(text), size);
  }
  static void Record(int, void* self) {
    auto& r = *static_cast<Records*>(self);
    if (r.status_.ok()) r.status_ = r.reader_.ReadRecord(r.cells_, r.line_);
    r.cells_.clear();
  }

  csv_parser parser_;
  LogReader reader_;
  std::vector<std::string> cells_;
  int64_t line_ = 0;
  absl::Status status_;
};
}  // namespace

absl::StatusOr<OutcomeLog> ParseOutcomeLog(absl::string_view csv) {
  csv = absl::StripPrefix(csv, "\xEF\xBB\xBF");
  Records records;
  while (!csv.empty()) {
    const size_t end = csv.find('\n');
    const size_t size = end == absl::string_view::npos ? csv.size() : end + 1;
    SLUICE_RETURN_IF_ERROR(records.Feed(csv.substr(0, size)));
    csv.remove_prefix(size);
  }
  return records.Done();
}

absl::StatusOr<OutcomeLog> LoadOutcomeLog(const std::string& path) {
  SLUICE_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  auto log = ParseOutcomeLog(text);
  if (!log.ok())
    return absl::Status(log.status().code(), absl::StrCat(path, ": ", log.status().message()));
  return log;
}

bool OutcomeLog::Row::Tells(const Needs& needs) const {
  const auto told = [](const std::vector<double>& x) {
    return std::none_of(x.begin(), x.end(), [](double v) { return std::isnan(v); });
  };
  return told(quality) && (!needs.cost || told(cost_usd)) && (!needs.latency || told(latency_s));
}

absl::StatusOr<OutcomeLog> OutcomeLog::Complete(const Needs& needs) const {
  OutcomeLog kept;
  kept.tasks = tasks;
  kept.agents = agents;
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(kept.rows),
               [&](const Row& r) { return r.Tells(needs); });
  if (kept.rows.empty())
    return absl::InvalidArgumentError(absl::StrCat(
        "none of ", rows.size(), " rows tells every agent's quality", needs.cost ? " and cost" : "",
        needs.latency ? " and latency" : "", ": agents cannot be compared"));
  return kept;
}

int64_t OutcomeLog::missing() const {
  int64_t n = 0;
  for (const Row& r : rows) {
    for (double q : r.quality) n += std::isnan(q);
  }
  return n;
}

std::shared_ptr<AgentGraph> OutcomeLog::Graph(double ability) const {
  auto g = std::make_shared<AgentGraph>();
  g->tasks = tasks;
  g->stages.resize(1);
  const auto mean = [&](size_t agent, std::vector<double> Row::*column) {
    MeanOfTold told;
    for (const Row& r : rows) told.Add((r.*column)[agent]);
    return told.value();
  };
  for (size_t a = 0; a < agents.size(); ++a) {
    Agent agent;
    agent.id = agents[a];
    agent.model = agents[a];
    agent.ability.assign(tasks.size(), ability);
    agent.cost_usd = mean(a, &Row::cost_usd);
    agent.latency_s = mean(a, &Row::latency_s);
    g->stages[0].push_back(std::move(agent));
  }
  return g;
}
SLUICE_END_NAMESPACE
