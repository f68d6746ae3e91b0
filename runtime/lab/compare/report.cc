// The comparison's tables, charts and heat maps.
#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/policies/search/search.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/lab/compare/totals.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
using Documents = std::vector<const CompareDocument*>;

std::vector<double> MeanOf(const Documents& docs,
                           const std::vector<double> CompareDocument::*field) {
  std::vector<double> mean(((*docs[0]).*field).size());
  for (const CompareDocument* d : docs) {
    for (size_t i = 0; i < mean.size(); ++i)
      mean[i] += (d->*field)[i] / static_cast<double>(docs.size());
  }
  return mean;
}

class ReportMaker {
 public:
  ReportMaker(const CompareOptions& o, bool times) : o_(o), times_(times) {}
  Report Make(const std::vector<CompareDocument>& documents, const std::string& title);

 private:
  // One context: its table, and what its policies add to the charts.
  struct Context {
    std::string name;
    bool longest = false;
    Documents base;  // of the first policy
    double base_macs = 1;
    ReportTable table;
    std::vector<Tradeoff> by_perplexity, by_facts;
    ReportChart::Series perplexity, facts;
  };
  void AddContext(int64_t tokens, const std::vector<CompareDocument>& documents);
  std::vector<ReportTable::Column> Columns() const;
  void AddPolicy(const std::string& policy, const Documents& docs, Context& c);
  void AddQuality(const Documents& docs, const Context& c, const Totals& all,
                  std::vector<ReportCell>& row) const;
  void AddTimes(const Documents& docs, const Context& c, const Work& work,
                std::vector<ReportCell>& row);
  void AddHeats(const std::string& policy, const Documents& docs);
  void AddCharts(Context& c);
  std::string Notes() const;
  ReportCell Change(const Documents& docs, const Context& c,
                    const std::function<double(const CompareDocument&, const CompareDocument&)>& of,
                    const std::function<double(double)>& shown) const;

  const CompareOptions& o_;
  const bool times_;
  int64_t fewest_ = INT64_MAX;  // documents of a context
  std::vector<double> errors_;  // of the cost model, relative, a cell each
  std::vector<ReportTable> tables_;
  ReportChart quality_{.title = "Perplexity against work",
                       .x = "attention and linear MACs, share of the baseline",
                       .y = "perplexity",
                       .log_x = false,
                       .series = {}};
  ReportChart accuracy_{.title = "Fact accuracy against density",
                        .x = "attention pairs, share of dense",
                        .y = "facts answered right",
                        .log_x = true,
                        .series = {}};
  ReportHeat layers_{.title = "Density by layer",
                     .note = "attention pairs computed, share of dense, longest context"};
  ReportHeat heads_{.title = "Density by KV head",
                    .note = "pairs that plans list, share of dense, longest context, all layers"};
  std::vector<ReportHeat> maps_;
};

std::vector<ReportTable::Column> ReportMaker::Columns() const {
  std::vector<ReportTable::Column> columns = {{"policy", -1}};
  const auto add = [&](std::initializer_list<ReportTable::Column> more) {
    columns.insert(columns.end(), more);
  };
  if (o_.perplexity) add({{"perplexity", 3}, {"change %", 2}});
  if (o_.facts) add({{"facts", 3}, {"points", 1}});
  add({{"density", 3}, {"GMAC", 1}, {"KV GB", 2}, {"weights GB", 2}});
  if (times_) add({{"s", 2}, {"speed", 2}, {"plan s", 2}, {"attend s", 2}, {"foretold s", 2}});
  return columns;
}

// The mean over documents of what `of` says of a policy's and the first policy's document, and its
// interval, both as `shown`, which must not fall.
ReportCell ReportMaker::Change(
    const Documents& docs, const Context& c,
    const std::function<double(const CompareDocument&, const CompareDocument&)>& of,
    const std::function<double(double)>& shown) const {
  std::vector<double> changes;
  for (size_t i = 0; i < docs.size(); ++i) changes.push_back(of(*docs[i], *c.base[i]));
  const MeanInterval m = ChangeInterval(changes, o_);
  return {"", shown(m.value), shown(m.low), shown(m.high)};
}

// Each measure, and its change against the first policy on the same documents.
void ReportMaker::AddQuality(const Documents& docs, const Context& c, const Totals& all,
                             std::vector<ReportCell>& row) const {
  if (o_.perplexity) {
    row.push_back({"", all.perplexity()});
    const auto log_perplexity = [](const CompareDocument& mine, const CompareDocument& theirs) {
      return LogPerplexity(mine) - LogPerplexity(theirs);
    };
    row.push_back(
        Change(docs, c, log_perplexity, [](double x) { return 100 * (std::exp(x) - 1); }));
  }
  if (o_.facts) {
    row.push_back({"", all.accuracy()});
    const auto points = [](const CompareDocument& mine, const CompareDocument& theirs) {
      return Accuracy(mine) - Accuracy(theirs);
    };
    row.push_back(Change(docs, c, points, [](double x) { return 100 * x; }));
  }
}

void ReportMaker::AddTimes(const Documents& docs, const Context& c, const Work& work,
                           std::vector<ReportCell>& row) {
  const auto log_speed = [](const CompareDocument& mine, const CompareDocument& theirs) {
    return std::log(theirs.total_s / mine.total_s);
  };
  const double each = 1 / static_cast<double>(std::max<size_t>(1, docs.size()));
  row.push_back({"", work.seconds * each});
  row.push_back(Change(docs, c, log_speed, [](double x) { return std::exp(x); }));
  for (double v : {work.plan, work.attend, work.predicted}) row.push_back({"", v * each});
  if (work.attend > 0) errors_.push_back(std::abs(work.predicted / work.attend - 1));
}

void ReportMaker::AddHeats(const std::string& policy, const Documents& docs) {
  layers_.rows.push_back(policy);
  layers_.values.push_back(MeanOf(docs, &CompareDocument::layer_density));
  heads_.rows.push_back(policy);
  heads_.values.push_back(MeanOf(docs, &CompareDocument::head_density));
  if (policy == o_.policies[0]) return;
  ReportHeat map;
  map.title = absl::StrCat("Blocks that ", policy, " reads");
  map.note = "queries downwards, keys to the right";
  map.picture = true;
  const std::vector<double> values = MeanOf(docs, &CompareDocument::block_map);
  for (size_t r = 0; r < kMapBins; ++r) {
    map.rows.push_back("");
    map.values.emplace_back();
    for (size_t c = 0; c < kMapBins; ++c) {
      const double v = values[r * kMapBins + c];
      map.values.back().push_back(v < 0 ? NAN : v);
    }
  }
  map.columns.assign(kMapBins, "");
  maps_.push_back(std::move(map));
}

void ReportMaker::AddPolicy(const std::string& policy, const Documents& docs, Context& c) {
  Totals all;
  Work work;
  for (const CompareDocument* d : docs) {
    all.Add(*d);
    work.Add(*d);
  }
  if (policy == o_.policies[0]) c.base_macs = work.macs;
  std::vector<ReportCell> row{{policy}};
  AddQuality(docs, c, all, row);
  const double giga = 1e-9 / static_cast<double>(std::max<size_t>(1, docs.size()));
  row.push_back({"", work.density()});
  for (double v : {work.macs, work.kv, work.weights}) row.push_back({"", v * giga});
  if (times_) AddTimes(docs, c, work, row);
  c.table.rows.push_back(std::move(row));
  c.by_perplexity.push_back({work.macs, o_.perplexity ? -all.perplexity() : NAN});
  c.by_facts.push_back({work.macs, o_.facts ? all.accuracy() : NAN});
  const std::string label = absl::StrCat(policy, ", ", c.name);
  if (o_.perplexity)
    c.perplexity.points.push_back(
        {.x = work.macs / c.base_macs, .y = all.perplexity(), .label = label});
  if (o_.facts)
    c.facts.points.push_back({.x = work.density(), .y = all.accuracy(), .label = label});
  if (c.longest && !docs.empty()) AddHeats(policy, docs);
}

// The context's points, and under them the front as a line.
void AddSeries(ReportChart& chart, ReportChart::Series& s, const std::vector<bool>& on_front) {
  ReportChart::Series line{
      .name = "Pareto front of a context", .points = {}, .line = true, .quiet = true};
  for (size_t i = 0; i < s.points.size(); ++i) {
    if (on_front[i]) line.points.push_back(s.points[i]);
  }
  std::sort(line.points.begin(), line.points.end(),
            [](const auto& a, const auto& b) { return a.x < b.x; });
  if (line.points.size() > 1) chart.series.push_back(std::move(line));
  chart.series.push_back(std::move(s));
}
void ReportMaker::AddCharts(Context& c) {
  const std::vector<bool> by_perplexity = ParetoFront(c.by_perplexity);
  const std::vector<bool> by_facts = ParetoFront(c.by_facts);
  for (size_t i = 0; i < by_perplexity.size(); ++i)
    c.table.marked.push_back(by_perplexity[i] || by_facts[i]);
  if (o_.perplexity) AddSeries(quality_, c.perplexity, by_perplexity);
  if (!o_.facts) return;
  std::vector<Tradeoff> points;  // on this chart the front is over density
  for (const auto& p : c.facts.points) points.push_back({p.x, p.y});
  AddSeries(accuracy_, c.facts, ParetoFront(points));
}

void ReportMaker::AddContext(int64_t tokens, const std::vector<CompareDocument>& documents) {
  std::map<std::string, Documents> of;
  for (const CompareDocument& d : documents) {
    if (d.context == tokens) of[d.policy].push_back(&d);
  }
  Context c;
  c.name = ContextName(tokens);
  c.longest = tokens == *std::max_element(o_.contexts.begin(), o_.contexts.end());
  c.base = of[o_.policies[0]];
  c.perplexity.name = c.name;
  c.facts.name = c.name;
  const auto n = static_cast<int64_t>(c.base.size());
  fewest_ = std::min(fewest_, n);
  c.table.title = absl::StrCat(c.name, " tokens, ", n, n == 1 ? " document" : " documents");
  c.table.columns = Columns();
  for (const std::string& policy : o_.policies) AddPolicy(policy, of[policy], c);
  AddCharts(c);
  tables_.push_back(std::move(c.table));
}

std::string ReportMaker::Notes() const {
  std::string notes = absl::StrCat("Baseline ", o_.policies[0], "; ", DTypeName(o_.engine.cache),
                                   " cache, seed ", o_.seed);
  if (fewest_ < 4)
    absl::StrAppend(&notes, "; with ", fewest_,
                    fewest_ == 1 ? " document there is no interval"
                                 : " documents intervals are not known to cover 95 %");
  if (!times_ || errors_.empty()) return notes;
  std::vector<double> sorted = errors_;
  std::sort(sorted.begin(), sorted.end());
  absl::StrAppendFormat(&notes,
                        "; the cost model's error over %d cells of attention time is %.1f %% in "
                        "the median, %.1f %% at most",
                        sorted.size(), 100 * sorted[sorted.size() / 2], 100 * sorted.back());
  return notes;
}

Report ReportMaker::Make(const std::vector<CompareDocument>& documents, const std::string& title) {
  for (int64_t context : o_.contexts) AddContext(context, documents);
  Report report;
  report.title = title;
  report.notes = Notes();
  report.tables = std::move(tables_);
  report.tables.back().note =
      "Marked rows: no other policy has both less work and better quality (perplexity or facts). "
      "Changes are against the first policy on the same documents: means over documents of the "
      "difference in log perplexity, of the difference in facts and of the logarithm of the ratio "
      "of times, with 95 % intervals (the wider of Student's and the studentised bootstrap's). An "
      "interval of no width says that all documents agree, not that others would.";
  if (o_.perplexity) report.charts.push_back(std::move(quality_));
  if (o_.facts) report.charts.push_back(std::move(accuracy_));
  for (ReportHeat* heat : {&layers_, &heads_}) {
    const size_t columns = heat->values.empty() ? 0 : heat->values[0].size();
    for (size_t i = 0; i < columns; ++i) heat->columns.push_back(absl::StrCat(i));
    report.heats.push_back(std::move(*heat));
  }
  for (ReportHeat& m : maps_) report.heats.push_back(std::move(m));
  return report;
}
}  // namespace

Report MakeReport(const std::vector<CompareDocument>& documents, const CompareOptions& o,
                  const std::string& title, bool times) {
  return ReportMaker(o, times).Make(documents, title);
}
}  // namespace lab
SLUICE_END_NAMESPACE
