#include "sluice/runtime/service/metrics.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

SLUICE_BEGIN_NAMESPACE
namespace {
using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// How long the UTF-8 character at the front is; 0: there is none.
size_t CharacterAt(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const bool overlong = (first == 0xE0 && byte(1) < 0xA0) || (first == 0xF0 && byte(1) < 0x90);
  const bool surrogate = first == 0xED && byte(1) > 0x9F;
  const bool beyond = first == 0xF4 && byte(1) > 0x8F;
  return overlong || surrogate || beyond ? 0 : size;
}
// Bytes that are no UTF-8 as \xNN: a scraper would refuse the whole page for one of them.
std::string Utf8(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t size = CharacterAt(text);
    if (size == 0) {
      absl::StrAppend(&out, "\\x", absl::Hex(static_cast<unsigned char>(text[0]), absl::kZeroPad2));
      text.remove_prefix(1);
      continue;
    }
    out.append(text.data(), size);
    text.remove_prefix(size);
  }
  return out;
}
// Names as label values, each its own: a name that another one reads like gets a number.
class Labels {
 public:
  explicit Labels(std::string label) : label_(std::move(label)) {}
  std::string Of(absl::string_view name) {
    const std::string plain = Utf8(name);
    std::string value = plain;
    for (int n = 2; !used_.insert(value).second; ++n) value = absl::StrCat(plain, " #", n);
    return value;
  }
  const std::string& label() const { return label_; }

 private:
  const std::string label_;
  std::set<std::string> used_;
};

class Page {
 public:
  MetricFamily& Family(const char* name, MetricType type, const char* help) {
    families_.push_back({.name = name, .help = help, .type = type, .metric = {}});
    return families_.back();
  }
  static void Add(MetricFamily& family, double value, std::vector<ClientMetric::Label> labels) {
    ClientMetric m;
    m.label = std::move(labels);
    if (family.type == MetricType::Counter) {
      m.counter.value = value;
    } else {
      m.gauge.value = value;
    }
    family.metric.push_back(std::move(m));
  }
  template <class T>
  void Counter(const char* name, const char* help, T value) {
    Add(Family(name, MetricType::Counter, help), static_cast<double>(value), {});
  }
  template <class T>
  void Gauge(const char* name, const char* help, T value) {
    Add(Family(name, MetricType::Gauge, help), static_cast<double>(value), {});
  }
  std::string Text() const { return prometheus::TextSerializer().Serialize(families_); }

 private:
  std::vector<MetricFamily> families_;
};

void AddServer(const v1::StatsResponse& s, Page& page) {
  page.Counter("sluice_decisions_total", "Paths chosen.", s.decisions());
  page.Counter("sluice_feedback_total", "Outcomes made durable.", s.feedbacks());
  page.Counter("sluice_feedback_duplicate_total", "Outcomes that were there already.",
               s.duplicates());
  page.Counter("sluice_feedback_rejected_total", "Outcomes refused with a reason.", s.rejected());
  page.Counter("sluice_malformed_total", "Messages that were no request.", s.malformed());
  page.Counter("sluice_overloaded_total", "Feedback requests answered OVERLOADED.", s.overloaded());
  page.Counter("sluice_rate_limited_total", "Requests answered RATE_LIMITED.", s.rate_limited());
  page.Counter("sluice_refused_total", "Connections and keys turned away.", s.refused());
  page.Counter("sluice_undeliverable_total", "Answers whose client was gone or did not read.",
               s.undeliverable());
  page.Counter("sluice_reload_total", "Configurations taken over.", s.reloads());
  page.Counter("sluice_reload_failed_total", "Configurations refused.", s.failed_reloads());
  page.Gauge("sluice_feedback_queue", "Outcomes not yet on disk.", s.feedback_queue());
  page.Gauge("sluice_snapshot_age_seconds", "Age of the state that decides.", s.snapshot_age_s());
  page.Gauge("sluice_uptime_seconds", "Since the server started.", s.uptime_s());
  // The server keeps percentiles and no sum, so this is no summary.
  MetricFamily& decide = page.Family("sluice_decide_seconds", MetricType::Gauge,
                                     "Time of one decision inside the server.");
  Page::Add(decide, s.decide_p50_us() * 1e-6, {{"quantile", "0.5"}});
  Page::Add(decide, s.decide_p99_us() * 1e-6, {{"quantile", "0.99"}});
  if (s.durability().empty()) return;
  MetricFamily& durability = page.Family("sluice_durability_info", MetricType::Gauge,
                                         "What an acknowledged outcome survives.");
  Page::Add(durability, 1, {{"survives", Utf8(s.durability())}});
}
void AddAgents(const v1::StatsResponse& s, Page& page) {
  Labels labels("agent");
  std::vector<std::string> names;
  for (const v1::AgentStats& a : s.agents()) names.push_back(labels.Of(a.agent()));
  const auto each = [&](const char* name, MetricType type, const char* help, auto get) {
    MetricFamily& family = page.Family(name, type, help);
    for (int i = 0; i < s.agents_size(); ++i)
      Page::Add(family, static_cast<double>(get(s.agents(i))), {{labels.label(), names[i]}});
  };
  using A = v1::AgentStats;
  each("sluice_agent_chosen_total", MetricType::Counter, "Decisions for this agent.",
       [](const A& a) { return a.chosen(); });
  each("sluice_agent_failures_total", MetricType::Counter, "Calls that failed.",
       [](const A& a) { return a.failures(); });
  each("sluice_agent_cost_usd_total", MetricType::Counter, "Spent on this agent.",
       [](const A& a) { return a.cost_usd(); });
  each("sluice_agent_in_flight", MetricType::Gauge, "Decisions without an outcome, fading.",
       [](const A& a) { return a.in_flight(); });
  each("sluice_agent_latency_seconds", MetricType::Gauge, "Latency, smoothed.",
       [](const A& a) { return a.latency_s(); });
  each("sluice_agent_quality", MetricType::Gauge, "Mean quality of outcomes.",
       [](const A& a) { return a.quality(); });
  each("sluice_agent_available", MetricType::Gauge, "1: may be chosen.",
       [](const A& a) { return a.breaker() == "open" || a.over_budget() ? 0 : 1; });
  each("sluice_agent_breaker_ends_seconds", MetricType::Gauge,
       "Until the breaker lets a probe through; 0: closed.",
       [](const A& a) { return a.breaker_ends_in_s(); });
  MetricFamily& breaker = page.Family("sluice_agent_breaker", MetricType::Gauge,
                                      "1 for the state that the breaker is in.");
  for (int i = 0; i < s.agents_size(); ++i) {
    for (const char* state : {"closed", "open", "half-open"})
      Page::Add(breaker, s.agents(i).breaker() == state ? 1 : 0,
                {{labels.label(), names[i]}, {"state", state}});
  }
}
void AddBudgets(const v1::StatsResponse& s, Page& page) {
  if (s.budgets_size() == 0) return;
  Labels labels("budget");
  std::vector<std::string> names;
  for (const v1::BudgetStats& b : s.budgets()) names.push_back(labels.Of(b.name()));
  MetricFamily& usd = page.Family("sluice_budget_usd", MetricType::Gauge,
                                  "Of this period: what may be spent, what was, what decisions "
                                  "without an outcome hold.");
  for (int i = 0; i < s.budgets_size(); ++i) {
    const v1::BudgetStats& b = s.budgets(i);
    const std::pair<const char*, double> kinds[] = {
        {"limit", b.limit_usd()}, {"spent", b.spent_usd()}, {"reserved", b.reserved_usd()}};
    for (const auto& [kind, value] : kinds)
      Page::Add(usd, value, {{labels.label(), names[i]}, {"kind", kind}});
  }
  MetricFamily& ends = page.Family("sluice_budget_ends_seconds", MetricType::Gauge,
                                   "Until the next period of the budget.");
  for (int i = 0; i < s.budgets_size(); ++i)
    Page::Add(ends, s.budgets(i).ends_in_s(), {{labels.label(), names[i]}});
}
}  // namespace

std::string PrometheusText(const v1::StatsResponse& stats) {
  Page page;
  AddServer(stats, page);
  AddAgents(stats, page);
  AddBudgets(stats, page);
  return page.Text();
}
SLUICE_END_NAMESPACE
