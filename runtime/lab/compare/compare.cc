#include "sluice/runtime/lab/compare/compare.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "sluice/api/check.h"
#include "sluice/policies/experiment/bootstrap.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(CompareDocument, policy, context, document, nll, counted, right,
                                   asked, exact_pairs, causal_pairs, attention_macs, kv_bytes,
                                   linear_macs, weight_bytes, total_s, plan_s, attend_s,
                                   predicted_attend_s, layer_density, head_density, block_map)
namespace {
using nlohmann::json;

// Which pairs a plan lists, by KV head and on a coarse map of queries by keys.
struct Listed {
  std::vector<double> head, map, map_all;
  double causal = 0;
};
void Count(const AttentionPlan& p, int64_t context, Listed& out) {
  const double bin = static_cast<double>(context) / kMapBins;
  const int64_t lists = p.num_lists(), tiles = p.num_tiles();
  const auto bin_of = [&](int64_t at) {
    return std::min<size_t>(kMapBins - 1, static_cast<size_t>(static_cast<double>(at) / bin));
  };
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile * p.tile, last = std::min(p.q_count, first + p.tile);
    const double n = static_cast<double>(last - first);
    const int64_t end = p.position(last - 1) + 1;
    const size_t row = bin_of(p.position((first + last) / 2));
    for (size_t c = 0; c < kMapBins; ++c) {
      const double seen =
          std::clamp(static_cast<double>(end) - static_cast<double>(c) * bin, 0.0, bin);
      out.map_all[row * kMapBins + c] += n * seen * static_cast<double>(lists);
    }
    for (const auto& b : p.branches) {
      for (int64_t list = 0; list < lists; ++list) {
        const auto r = static_cast<size_t>(list * tiles + tile);
        double keys = 0;
        const auto add = [&](int64_t lo, int64_t hi) {
          hi = std::min(hi, end);
          while (lo < hi) {
            const size_t c = bin_of(lo);
            const int64_t stop =
                c + 1 == kMapBins
                    ? hi
                    : std::min(hi,
                               static_cast<int64_t>(std::ceil(static_cast<double>(c + 1) * bin)));
            const int64_t to = std::max(stop, lo + 1);
            out.map[row * kMapBins + c] += n * static_cast<double>(to - lo);
            keys += static_cast<double>(to - lo);
            lo = to;
          }
        };
        for (uint32_t i = 0; i < b.rows.count[r]; ++i) {
          const size_t at = b.rows.begin[r] + i;
          if (b.encoding == Encoding::kTokens) {
            add(b.tokens[at], b.tokens[at] + 1);
          } else if (b.encoding == Encoding::kRankedPrefix) {
            add(b.tokens[at] * b.unit, (b.tokens[at] + 1) * b.unit);
          } else if (b.entries[at].state == EntryState::kExact) {
            int64_t lo = 0, hi = 0;
            EntryKeys(b, b.entries[at], p.kv_len, &lo, &hi);
            add(lo, hi);
          }
        }
        const int64_t heads = p.kv_heads;
        for (int64_t h = list * heads / lists;
             h < std::max((list + 1) * heads / lists, list * heads / lists + 1); ++h)
          out.head[h] += n * keys / static_cast<double>(std::max<int64_t>(1, lists / heads));
      }
    }
    out.causal += n * static_cast<double>(end);
  }
}

struct Totals {
  double nll = 0, counted = 0, right = 0, asked = 0;
  double perplexity() const { return counted > 0 ? std::exp(nll / counted) : NAN; }
  double accuracy() const { return asked > 0 ? right / asked : NAN; }
  void Add(const CompareDocument& d) {
    nll += d.nll;
    counted += static_cast<double>(d.counted);
    right += static_cast<double>(d.right);
    asked += static_cast<double>(d.asked);
  }
};
std::string ContextName(int64_t c) {
  return c % 1024 == 0 ? absl::StrCat(c / 1024, "k") : absl::StrCat(c);
}
}  // namespace

absl::StatusOr<std::vector<CompareDocument>> RunComparison(const host::Model& model,
                                                           const std::string& model_path,
                                                           const std::vector<int32_t>& tokens,
                                                           const CompareOptions& o) {
  if (o.policies.empty() || o.contexts.empty() || o.documents < 1 || (!o.perplexity && !o.facts))
    return absl::InvalidArgumentError(
        "compare: wanted at least one policy, one context, one document and one task");
  for (size_t i = 0; i < o.policies.size(); ++i) {
    if (std::find(o.policies.begin(), o.policies.begin() + static_cast<int64_t>(i),
                  o.policies[i]) != o.policies.begin() + static_cast<int64_t>(i))
      return absl::InvalidArgumentError(
          absl::StrCat("compare: policy '", o.policies[i], "' is given twice"));
  }
  // What a finished document depends on, besides its policy.
  SLUICE_ASSIGN_OR_RETURN(const std::string bytes, ReadTextFile(model_path));
  const std::string key = absl::StrCat(
      absl::Hex(HashText(bytes)), "-",
      absl::Hex(HashText(
          {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)})),
      "-", o.seed, "-", o.perplexity, o.facts, "-", o.facts_each, "-", DTypeName(o.engine.cache),
      "-", o.engine.chunk, "-", absl::Hex(HashText(o.separator)), o.foretell ? "-foretold" : "");
  using Cell = std::tuple<std::string, int64_t, int64_t>;
  std::map<Cell, CompareDocument> known;
  if (!o.resume.empty()) {
    std::ifstream f(o.resume);
    for (std::string line; std::getline(f, line);) {
      const json j = json::parse(line, nullptr,
                                 false);  // a line cut short by an interruption is measured again
      try {
        if (j.is_object() && j.at("key") == key) {
          auto d = j.get<CompareDocument>();
          known[{d.policy, d.context, d.document}] = std::move(d);
        }
      } catch (const json::exception&) {
      }
    }
  }
  std::vector<CompareDocument> done;
  double total = 0, spent = 0;  // in tokens
  std::vector<int64_t> documents;
  for (int64_t c : o.contexts) {
    if (c < 64 || c > model.shape.context)
      return absl::OutOfRangeError(
          absl::StrCat("context ", c, ", allowed 64 to the model's ", model.shape.context));
    documents.push_back(std::min(o.documents, static_cast<int64_t>(tokens.size()) / c));
    if (documents.back() < 1)
      return absl::OutOfRangeError(
          absl::StrCat("context ", c, ", but there are only ", tokens.size(), " tokens of text"));
    total += static_cast<double>(c * documents.back()) * static_cast<double>(o.policies.size());
  }
  const int64_t layers = model.shape.layers;
  std::optional<AttentionClock> clock;
  for (size_t ci = 0; ci < o.contexts.size(); ++ci) {
    const int64_t context = o.contexts[ci];
    std::vector<host::FactPrompt> prompts;
    for (int64_t d = 0; d < documents[ci]; ++d) {
      const std::vector<int32_t> text(tokens.begin() + d * context,
                                      tokens.begin() + (d + 1) * context);
      if (o.facts) {
        prompts.push_back(host::PlantFacts(model.tokenizer, text, context, o.facts_each,
                                           o.seed * 1000003 + static_cast<uint64_t>(d),
                                           o.separator));
      } else {
        prompts.push_back(
            {text, std::vector<uint8_t>(text.size(), 0), std::vector<uint8_t>(text.size(), 1), {}});
      }
    }
    for (const std::string& policy : o.policies) {
      std::unique_ptr<host::Engine> engine;
      double predicted = 0;
      Listed listed;
      for (int64_t d = 0; d < documents[ci]; ++d) {
        const auto at = known.find({policy, context, d});
        if (at != known.end()) {
          done.push_back(at->second);
          spent += static_cast<double>(context);
          continue;
        }
        if (o.foretell && !clock.has_value()) {
          if (o.progress) o.progress("calibrating the cost model", spent / total);
          SLUICE_ASSIGN_OR_RETURN(clock, AttentionClock::Create(model, o.engine));
        }
        if (engine == nullptr) {
          host::EngineOptions e = o.engine;
          e.max_tokens = context + 64;
          e.quality_stride = 0;
          e.on_plan = [&](int64_t, const AttentionPlan& plan, double) {
            if (clock.has_value()) predicted += clock->Seconds(plan);
            Count(plan, context, listed);
          };
          auto made = host::CreateWithPolicy(model, e, policy);
          if (!made.ok())
            return absl::Status(made.status().code(),
                                absl::StrCat("policy '", policy, "': ", made.status().message()));
          engine = *std::move(made);
        }
        predicted = 0;
        listed.head.assign(model.shape.kv_heads, 0);
        listed.causal = 0;
        listed.map.assign(kMapBins * kMapBins, 0);
        listed.map_all = listed.map;
        if (o.progress)
          o.progress(absl::StrCat(policy, " at ", ContextName(context), ", document ", d + 1, "/",
                                  documents[ci]),
                     spent / total);
        if (clock.has_value()) SLUICE_RETURN_IF_ERROR(clock->Probe());
        const host::FactPrompt& p = prompts[d];
        auto score = host::ScoreMarked(*engine, p.tokens, p.answer, p.text);
        if (!score.ok())
          return absl::Status(score.status().code(),
                              absl::StrCat("policy '", policy, "': ", score.status().message()));
        CompareDocument r;
        r.policy = policy;
        r.context = context;
        r.document = d;
        if (o.perplexity) {
          r.nll = score->nll;
          r.counted = score->counted;
        }
        r.right = score->right;
        r.asked = score->asked;
        const AttentionCounters& c = engine->counters();
        r.exact_pairs = static_cast<double>(c.exact_pairs);
        r.attention_macs = static_cast<double>(c.macs);
        // Dense pairs of the whole text, also where a policy leaves tokens out.
        const double n = static_cast<double>(p.tokens.size());
        r.causal_pairs = n * (n + 1) / 2 * static_cast<double>(model.shape.heads * layers);
        r.kv_bytes = static_cast<double>(c.kv_bytes);
        r.linear_macs = static_cast<double>(engine->linear().macs);
        r.weight_bytes = static_cast<double>(engine->linear().weight_bytes);
        r.total_s = engine->timing().total_s;
        r.plan_s = engine->timing().plan_s;
        r.attend_s = engine->timing().attend_s;
        r.predicted_attend_s = predicted;
        for (int64_t l = 0; l < layers; ++l)
          r.layer_density.push_back(static_cast<double>(engine->layer_counters(l).exact_pairs) /
                                    (r.causal_pairs / static_cast<double>(layers)));
        for (double h : listed.head)
          r.head_density.push_back(listed.causal > 0 ? h / listed.causal : 0);
        for (size_t i = 0; i < listed.map.size(); ++i)
          r.block_map.push_back(
              listed.map_all[i] > 0 ? std::min(1.0, listed.map[i] / listed.map_all[i]) : -1);
        if (!o.resume.empty()) {
          std::ofstream f(o.resume, std::ios::app);
          json line = r;
          line["key"] = key;
          f << line.dump() << "\n";
          f.close();
          if (!f) return absl::UnavailableError(absl::StrCat("cannot write ", o.resume));
        }
        done.push_back(std::move(r));
        spent += static_cast<double>(context);
      }
    }
  }
  if (o.progress) o.progress("done", 1);
  return done;
}

Report MakeReport(const std::vector<CompareDocument>& documents, const CompareOptions& o,
                  const std::string& title, bool times) {
  Report report;
  report.title = title;
  int64_t few = INT64_MAX;
  ReportChart quality{"Perplexity against work",
                      "attention and linear MACs, share of the baseline",
                      "perplexity",
                      false,
                      {}},
      accuracy{"Fact accuracy against density",
               "attention pairs, share of dense",
               "facts answered right",
               true,
               {}};
  std::vector<double> errors;
  ReportHeat layer_heat{"Density by layer",
                        "attention pairs computed, share of dense, longest context",
                        {},
                        {},
                        {},
                        0,
                        1},
      head_heat{"Density by KV head",
                "pairs that plans list, share of dense, longest context, all layers",
                {},
                {},
                {},
                0,
                1};
  std::vector<ReportHeat> maps;
  for (int64_t context : o.contexts) {
    std::map<std::string, std::vector<const CompareDocument*>> of;
    for (const CompareDocument& d : documents) {
      if (d.context == context) of[d.policy].push_back(&d);
    }
    ReportTable t;
    const auto& base = of[o.policies[0]];
    const auto n = static_cast<int64_t>(base.size());
    few = std::min(few, n);
    t.title =
        absl::StrCat(ContextName(context), " tokens, ", n, n == 1 ? " document" : " documents");
    t.columns = {{"policy", -1}};
    if (o.perplexity) t.columns.insert(t.columns.end(), {{"perplexity", 3}, {"change %", 2}});
    if (o.facts) t.columns.insert(t.columns.end(), {{"facts", 3}, {"points", 1}});
    t.columns.insert(t.columns.end(),
                     {{"density", 3}, {"GMAC", 1}, {"KV GB", 2}, {"weights GB", 2}});
    if (times)
      t.columns.insert(t.columns.end(),
                       {{"s", 2}, {"speed", 2}, {"plan s", 2}, {"attend s", 2}, {"foretold s", 2}});
    const bool longest = context == *std::max_element(o.contexts.begin(), o.contexts.end());
    std::vector<Tradeoff> by_perplexity, by_facts;
    double base_macs = 1;
    ReportChart::Series ppl_series{ContextName(context), {}, false, false},
        fact_series = ppl_series;
    for (const std::string& policy : o.policies) {
      const auto& docs = of[policy];
      std::vector<ReportCell> row{{policy}};
      double macs = 0, pairs = 0, causal = 0, kv = 0, weights = 0, seconds = 0, plan = 0,
             attend = 0, predicted = 0;
      Totals all;
      for (const CompareDocument* d : docs) {
        all.Add(*d);
        macs += d->attention_macs + d->linear_macs;
        pairs += d->exact_pairs;
        causal += d->causal_pairs;
        kv += d->kv_bytes;
        weights += d->weight_bytes;
        seconds += d->total_s;
        plan += d->plan_s;
        attend += d->attend_s;
        predicted += d->predicted_attend_s;
      }
      if (policy == o.policies[0]) base_macs = macs;
      const auto paired =
          [&](const std::function<double(const Totals& mine, const Totals& theirs)>& what) {
            const auto i =
                PairedBootstrap(n, o.draws, o.seed, [&](absl::Span<const int64_t> drawn) {
                  Totals mine, theirs;
                  for (int64_t k : drawn) {
                    mine.Add(*docs[k]);
                    theirs.Add(*base[k]);
                  }
                  return what(mine, theirs);
                });
            return ReportCell{"", i.value, n > 1 ? i.low : NAN, n > 1 ? i.high : NAN};
          };
      if (o.perplexity) {
        row.push_back({"", all.perplexity()});
        row.push_back(paired([](const Totals& m, const Totals& b) {
          return 100 * (m.perplexity() / b.perplexity() - 1);
        }));
      }
      if (o.facts) {
        row.push_back({"", all.accuracy()});
        row.push_back(paired(
            [](const Totals& m, const Totals& b) { return 100 * (m.accuracy() - b.accuracy()); }));
      }
      const double density = causal > 0 ? pairs / causal : NAN,
                   per = 1e-9 / static_cast<double>(std::max<int64_t>(1, n));
      for (double v : {density, macs * per, kv * per, weights * per}) row.push_back({"", v});
      if (times) {
        const auto speed =
            PairedBootstrap(n, o.draws, o.seed, [&](absl::Span<const int64_t> drawn) {
              double mine = 0, theirs = 0;
              for (int64_t k : drawn) {
                mine += docs[k]->total_s;
                theirs += base[k]->total_s;
              }
              return theirs / mine;
            });
        const double a = 1 / static_cast<double>(std::max<int64_t>(1, n));
        row.push_back({"", seconds * a});
        row.push_back({"", speed.value, n > 1 ? speed.low : NAN, n > 1 ? speed.high : NAN});
        for (double v : {plan * a, attend * a, predicted * a}) row.push_back({"", v});
        if (attend > 0) errors.push_back(std::abs(predicted / attend - 1));
      }
      t.rows.push_back(std::move(row));
      by_perplexity.push_back({macs, o.perplexity ? -all.perplexity() : NAN});
      by_facts.push_back({macs, o.facts ? all.accuracy() : NAN});
      if (o.perplexity)
        ppl_series.points.push_back({macs / base_macs, all.perplexity(), NAN, NAN,
                                     absl::StrCat(policy, ", ", ContextName(context))});
      if (o.facts)
        fact_series.points.push_back(
            {density, all.accuracy(), NAN, NAN, absl::StrCat(policy, ", ", ContextName(context))});
      if (!longest || docs.empty()) continue;
      const auto mean = [&](const std::vector<double> CompareDocument::*field) {
        std::vector<double> m(((*docs[0]).*field).size());
        for (const CompareDocument* d : docs) {
          for (size_t i = 0; i < m.size(); ++i)
            m[i] += (d->*field)[i] / static_cast<double>(docs.size());
        }
        return m;
      };
      layer_heat.rows.push_back(policy);
      layer_heat.values.push_back(mean(&CompareDocument::layer_density));
      head_heat.rows.push_back(policy);
      head_heat.values.push_back(mean(&CompareDocument::head_density));
      if (policy != o.policies[0]) {
        ReportHeat map{absl::StrCat("Blocks that ", policy, " reads"),
                       "queries downwards, keys to the right",
                       {},
                       {},
                       {},
                       0,
                       1};
        map.picture = true;
        const std::vector<double> values = mean(&CompareDocument::block_map);
        for (size_t r = 0; r < kMapBins; ++r) {
          map.rows.push_back("");
          map.values.emplace_back();
          for (size_t c = 0; c < kMapBins; ++c) {
            const double v = values[r * kMapBins + c];
            map.values.back().push_back(v < 0 ? NAN : v);
          }
        }
        map.columns.assign(kMapBins, "");
        maps.push_back(std::move(map));
      }
    }
    const std::vector<bool> one = ParetoFront(by_perplexity), two = ParetoFront(by_facts);
    for (size_t i = 0; i < one.size(); ++i) t.marked.push_back(one[i] || two[i]);
    // The front as a line under the points.
    const auto front = [&](ReportChart& chart, ReportChart::Series& s,
                           const std::vector<bool>& on) {
      ReportChart::Series line{"Pareto front of a context", {}, true, true};
      for (size_t i = 0; i < s.points.size(); ++i) {
        if (on[i]) line.points.push_back(s.points[i]);
      }
      std::sort(line.points.begin(), line.points.end(),
                [](const auto& a, const auto& b) { return a.x < b.x; });
      if (line.points.size() > 1) chart.series.push_back(std::move(line));
      chart.series.push_back(std::move(s));
    };
    if (o.perplexity) front(quality, ppl_series, one);
    if (o.facts) {
      // On this chart the front is over density.
      std::vector<Tradeoff> points;
      for (const auto& p : fact_series.points) points.push_back({p.x, p.y});
      front(accuracy, fact_series, ParetoFront(points));
    }
    report.tables.push_back(std::move(t));
  }
  report.tables.back().note =
      "Marked rows: no other policy has both less work and better quality (perplexity or facts). "
      "Changes are against "
      "the "
      "first policy on the same documents, with 95 % paired bootstrap intervals over documents.";
  report.notes = absl::StrCat(
      "Baseline ", o.policies[0], "; ", DTypeName(o.engine.cache), " cache, seed ", o.seed,
      few < 8 ? absl::StrCat("; with ", few, " documents intervals are rough and too narrow") : "");
  if (times && !errors.empty()) {
    std::sort(errors.begin(), errors.end());
    absl::StrAppendFormat(&report.notes,
                          "; the cost model's error over %d cells of attention time is %.1f %% in "
                          "the median, %.1f %% at most",
                          errors.size(), 100 * errors[errors.size() / 2], 100 * errors.back());
  }
  if (o.perplexity) report.charts.push_back(std::move(quality));
  if (o.facts) report.charts.push_back(std::move(accuracy));
  for (size_t l = 0; !layer_heat.values.empty() && l < layer_heat.values[0].size(); ++l)
    layer_heat.columns.push_back(absl::StrCat(l));
  for (size_t h = 0; !head_heat.values.empty() && h < head_heat.values[0].size(); ++h)
    head_heat.columns.push_back(absl::StrCat(h));
  report.heats = {std::move(layer_heat), std::move(head_heat)};
  for (auto& m : maps) report.heats.push_back(std::move(m));
  return report;
}
}  // namespace lab
SLUICE_END_NAMESPACE
