#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/text/encoder.h"
#include "sluice/runtime/text/text_file.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int kHeadSeeds = 5;
constexpr uint64_t kTestPercent = 15;  // examples/training/common/queries.py

uint64_t Fnv1a(const std::string& text) {
  uint64_t h = 0xcbf29ce484222325u;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
  return h;
}
struct Query {
  std::vector<int32_t> ids;
  size_t family = 0;
};
// Queries of a gzip file of JSON lines that no training saw.
absl::Status ReadQueries(const std::string& path, const Encoder& e, std::vector<Query>* out) {
  SLUICE_ASSIGN_OR_RETURN(const std::string all, ReadTextFile(path));
  int64_t number = 0;
  for (absl::string_view line : absl::StrSplit(absl::StripSuffix(all, "\n"), '\n')) {
    ++number;
    const nlohmann::json q = nlohmann::json::parse(line, nullptr, false);
    const auto text = [&](const char* key) {
      return q.is_object() && q.contains(key) && q[key].is_string() ? q[key].get<std::string>()
                                                                    : "";
    };
    const std::string task = text("task"),
                      family = task == "mmlu_pro" ? task + "/" + text("subtask") : task;
    const auto at = std::find(e.labels().begin(), e.labels().end(), family);
    if (at == e.labels().end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": family '", family, "' is not one of the encoder's"));
    }
    if (Fnv1a(text("qid")) % 100 < kTestPercent) {
      std::vector<int32_t> ids = e.tokenizer()->Encode(text("text"));
      if (!ids.empty())
        out->push_back({std::move(ids), static_cast<size_t>(at - e.labels().begin())});
    }
  }
  return absl::OkStatus();
}
struct Measured {
  double accuracy = 0, four = 0;  // over all families, and among those of one benchmark pool
};
absl::StatusOr<Measured> Accuracy(const Encoder& e, const std::vector<Query>& queries,
                                  Executor& threads) {
  std::vector<std::vector<int32_t>> ids;
  for (const Query& q : queries) ids.push_back(q.ids);
  SLUICE_ASSIGN_OR_RETURN(const Encoder::Result r, e.Run(ids, threads));
  const size_t classes = e.labels().size();
  double right = 0, four = 0, of_four = 0;
  for (size_t i = 0; i < queries.size(); ++i) {
    const float* logits = &r.logits[i * classes];
    right += static_cast<size_t>(std::max_element(logits, logits + classes) - logits) ==
             queries[i].family;
    if (e.labels()[queries[i].family].find('/') != std::string::npos) continue;
    size_t best = classes;
    for (size_t c = 0; c < classes; ++c) {
      if (e.labels()[c].find('/') == std::string::npos &&
          (best == classes || logits[c] > logits[best]))
        best = c;
    }
    ++of_four, four += best == queries[i].family;
  }
  return Measured{right / static_cast<double>(std::max<size_t>(1, queries.size())),
                  four / std::max(1.0, of_four)};
}
absl::Status Speed(const std::vector<std::pair<std::string, const Encoder*>>& encoders,
                   Executor& threads, int64_t repeats) {
  std::vector<std::vector<int32_t>> batch(64);
  for (size_t i = 0; i < batch.size(); ++i)
    for (uint64_t t = 0; t < 128; ++t)
      batch[i].push_back(static_cast<int32_t>(RandomBits({3, 0, 0, i, t}) % 8000 + 1));
  std::vector<std::vector<double>> seconds(encoders.size());
  std::vector<int64_t> macs(encoders.size());
  for (int64_t turn = 0; turn <= repeats; ++turn) {
    Note(absl::StrCat("throughput, ", turn, "/", repeats));
    for (size_t i = 0; i < encoders.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      SLUICE_ASSIGN_OR_RETURN(const Encoder::Result r, encoders[i].second->Run(batch, threads));
      if (turn > 0)
        seconds[i].push_back(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      macs[i] = r.macs;
    }
  }
  ClearNote();
  std::printf(
      "\nbatch of 64 sequences of 128 tokens, medians of %lld\n%-12s %12s %9s %12s %12s %12s\n",
      static_cast<long long>(repeats), "encoder", "sequences/s", "speed", "MACs", "parameters",
      "of dense");
  for (size_t i = 0; i < encoders.size(); ++i) {
    const double s = Median(seconds[i]);
    std::printf("%-12s %12.0f %8.2fx %11.1f%% %12lld %11.1f%%\n", encoders[i].first.c_str(),
                static_cast<double>(batch.size()) / s, Median(seconds[0]) / s,
                100 * static_cast<double>(macs[i]) / static_cast<double>(macs[0]),
                static_cast<long long>(encoders[i].second->layer_parameters()),
                100 * static_cast<double>(encoders[i].second->layer_parameters()) /
                    static_cast<double>(encoders[0].second->layer_parameters()));
  }
  const double saved = 1 - static_cast<double>(encoders[1].second->layer_parameters()) /
                               static_cast<double>(encoders[0].second->layer_parameters());
  const double flops = static_cast<double>(macs[2]) / static_cast<double>(macs[0]);
  std::printf(
      "B1 half the layers: -48 %% +- 1 of the layer parameters (%.1f): %s; all but one: 11.5 %% +- "
      "0.7 of the MACs "
      "(%.1f): %s\n",
      -100 * saved, Verdict(std::abs(saved - 0.48) <= 0.01), 100 * flops,
      Verdict(std::abs(flops - 0.115) <= 0.007));
  const double speed = Median(seconds[0]) / Median(seconds[2]);
  std::printf("B4 all but one at least 3x dense (%.2f): %s; published 4.2x\n", speed,
              Verdict(speed >= 3));
  return absl::OkStatus();
}
}  // namespace

absl::Status EvaluateShrp(const EvaluateOptions& o) {
  const auto open = [&](const std::string& name) { return Gguf::Open(o.folder + "/" + name); };
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, open("intent-encoder-q8_0.gguf"));
  SLUICE_ASSIGN_OR_RETURN(const Encoder dense, Encoder::Load(file));
  const auto load = [&](const std::string& run, const std::string& head,
                        int seed) -> absl::StatusOr<Encoder> {
    SLUICE_ASSIGN_OR_RETURN(const Gguf c,
                            open(absl::StrCat("shrp-", run, "-", head, "-s", seed, ".gguf")));
    return Encoder::Load(file, &c);
  };
  const auto threads = MakeTbbExecutor(o.threads);
  std::printf(
      "SHRP (arXiv 2512.20635): encoder of %lld layers, %lld heads of %lld, %zu task families\n",
      static_cast<long long>(dense.shape().layers), static_cast<long long>(dense.shape().heads),
      static_cast<long long>(dense.shape().head_dim()), dense.labels().size());
  std::vector<Query> queries;
  for (const char* set : {"pool_a", "mmlu_pro"}) {
    const std::string path = absl::StrCat(o.data, "/", set, "/queries.jsonl.gz");
    if (!std::filesystem::exists(path)) {
      std::printf("accuracy SKIPPED: it needs %s (--data FOLDER)\n", path.c_str());
      queries.clear();
      break;
    }
    SLUICE_RETURN_IF_ERROR(ReadQueries(path, dense, &queries));
  }
  if (!queries.empty()) {
    std::printf("%zu held-out queries\n\n%-34s %9s %10s %12s\n", queries.size(), "encoder",
                "accuracy", "of dense", "pool_a only");
    double base = 0;
    const auto row = [&](const std::string& name, const Measured& m) {
      ClearNote();
      base = base > 0 ? base : m.accuracy;
      std::printf("%-34s %9.4f %9.1f%% %12.4f\n", name.c_str(), m.accuracy, 100 * m.accuracy / base,
                  m.four);
      std::fflush(stdout);
      return m.accuracy;
    };
    SLUICE_ASSIGN_OR_RETURN(const Measured whole, Accuracy(dense, queries, *threads));
    row("dense", whole);
    SLUICE_ASSIGN_OR_RETURN(const Encoder routed, load("half", "routed", 1));
    SLUICE_ASSIGN_OR_RETURN(const Measured with, Accuracy(routed, queries, *threads));
    row("half, routed, seed 1", with);
    SLUICE_ASSIGN_OR_RETURN(const Measured without, Accuracy(routed.Pruned(), queries, *threads));
    row("half, cut, not tuned after, seed 1", without);
    std::vector<double> kept[2], random[2];
    for (int run : {0, 1}) {
      const std::string name = run == 0 ? "half" : "most";
      for (int seed = 1; seed <= kHeadSeeds; ++seed) {
        for (const char* head : {"usage_head", "random_head"}) {
          Note(absl::StrCat(name, ", ", head, ", seed ", seed));
          SLUICE_ASSIGN_OR_RETURN(const Encoder e, load(name, head, seed));
          SLUICE_ASSIGN_OR_RETURN(const Measured m, Accuracy(e, queries, *threads));
          const bool used = head[0] == 'u';
          (used ? kept : random)[run].push_back(
              row(absl::StrCat(run == 0 ? "half" : "all but one",
                               used ? ", most used head" : ", random head", ", seed ", seed),
                  m));
        }
      }
    }
    std::printf("\n");
    for (int run : {0, 1})
      std::printf(
          "%s: most used head %.4f +- %.4f (%.1f %% of dense), random head after the same training "
          "%.4f +- %.4f\n",
          run == 0 ? "half" : "all but one", Mean(kept[run]), Spread(kept[run]),
          100 * Mean(kept[run]) / base, Mean(random[run]), Spread(random[run]));
    std::printf(
        "B2 half keeps 93 %% of dense (%.1f): %s; most used over random head by 1 point (%.2f "
        "half, %.2f all but one): "
        "%s\n",
        100 * Mean(kept[0]) / base, Verdict(Mean(kept[0]) >= 0.93 * base),
        100 * (Mean(kept[0]) - Mean(random[0])), 100 * (Mean(kept[1]) - Mean(random[1])),
        Verdict(Mean(kept[0]) - Mean(random[0]) >= 0.01));
    std::printf("B3 cut within 1 point of routed (%.2f): %s\n",
                100 * (with.accuracy - without.accuracy),
                Verdict(std::abs(with.accuracy - without.accuracy) <= 0.01));
  }
  return ShrpSpeed(o);
}

absl::Status ShrpSpeed(const EvaluateOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(o.folder + "/intent-encoder-q8_0.gguf"));
  SLUICE_ASSIGN_OR_RETURN(const Gguf six, Gguf::Open(o.folder + "/shrp-half-usage_head-s1.gguf"));
  SLUICE_ASSIGN_OR_RETURN(const Gguf eleven,
                          Gguf::Open(o.folder + "/shrp-most-usage_head-s1.gguf"));
  SLUICE_ASSIGN_OR_RETURN(const Encoder dense, Encoder::Load(file));
  SLUICE_ASSIGN_OR_RETURN(const Encoder half, Encoder::Load(file, &six));
  SLUICE_ASSIGN_OR_RETURN(const Encoder most, Encoder::Load(file, &eleven));
  const auto threads = MakeTbbExecutor(o.threads);
  return Speed({{"dense", &dense}, {"half", &half}, {"all but one", &most}}, *threads, o.repeats);
}
}  // namespace lab
SLUICE_END_NAMESPACE
