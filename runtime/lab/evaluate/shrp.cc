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
#include "sluice/runtime/lab/evaluate/trained.h"
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
    ++of_four;
    four += best == queries[i].family;
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
  const auto parameters = [&](size_t i) {
    return static_cast<double>(encoders[i].second->layer_parameters());
  };
  for (size_t i = 0; i < encoders.size(); ++i) {
    const double s = Median(seconds[i]);
    std::printf("%-12s %12.0f %8.2fx %11.1f%% %12.0f %11.1f%%\n", encoders[i].first.c_str(),
                static_cast<double>(batch.size()) / s, Median(seconds[0]) / s,
                100 * static_cast<double>(macs[i]) / static_cast<double>(macs[0]), parameters(i),
                100 * parameters(i) / parameters(0));
  }
  const double saved = 1 - parameters(1) / parameters(0);
  const double flops = static_cast<double>(macs[2]) / static_cast<double>(macs[0]);
  std::printf(
      "B1 half the layers: -48 %% +- 1 of the layer parameters (%.1f): %s; all but one: 11.5 %% +- "
      "0.7 of the MACs (%.1f): %s\n",
      -100 * saved, Verdict(std::abs(saved - 0.48) <= 0.01), 100 * flops,
      Verdict(std::abs(flops - 0.115) <= 0.007));
  const double speed = Median(seconds[0]) / Median(seconds[2]);
  std::printf("B4 all but one at least 3x dense (%.2f): %s; published 4.2x\n", speed,
              Verdict(speed >= 3));
  return absl::OkStatus();
}

// Held-out queries of both sets; none when one of them is not there.
absl::StatusOr<std::vector<Query>> ReadSets(const EvaluateOptions& o, const Encoder& e) {
  std::vector<Query> queries;
  for (const char* set : {"pool_a", "mmlu_pro"}) {
    const std::string path = absl::StrCat(o.data, "/", set, "/queries.jsonl.gz");
    if (!std::filesystem::exists(path)) {
      std::printf("accuracy SKIPPED: it needs %s (--data FOLDER)\n", path.c_str());
      return std::vector<Query>();
    }
    SLUICE_RETURN_IF_ERROR(ReadQueries(path, e, &queries));
  }
  return queries;
}

// Accuracy of the encoder and of what pruning leaves of it, all over the same queries.
class Accuracies {
 public:
  Accuracies(const EvaluateOptions& o, const Gguf& file, const std::vector<Query>& queries,
             Executor& threads)
      : o_(o), file_(file), queries_(queries), threads_(threads) {}
  absl::Status Run(const Encoder& dense) {
    std::printf("%zu held-out queries\n\n%-34s %9s %10s %12s\n", queries_.size(), "encoder",
                "accuracy", "of dense", "pool_a only");
    SLUICE_ASSIGN_OR_RETURN(const Measured whole, Accuracy(dense, queries_, threads_));
    dense_ = whole.accuracy;
    Row("dense", whole);
    SLUICE_ASSIGN_OR_RETURN(const Encoder routed, Load("half-routed", 1));
    SLUICE_ASSIGN_OR_RETURN(const double with, Measure("half, routed, seed 1", routed));
    SLUICE_ASSIGN_OR_RETURN(const double without,
                            Measure("half, cut, not tuned after, seed 1", routed.Pruned()));
    SLUICE_ASSIGN_OR_RETURN(const Heads half, CompareHeads("half", "half"));
    SLUICE_ASSIGN_OR_RETURN(const Heads most, CompareHeads("most", "all but one"));

    std::printf("\nover %d training seeds; %s\n", kHeadSeeds, kMarginNote);
    PrintHeads("half", half);
    PrintHeads("all but one", most);
    std::printf(
        "B2 half keeps 93 %% of dense (%.1f): %s; most used over random head by 1 point (%.2f "
        "half, %.2f all but one): %s\n",
        100 * Mean(half.used) / dense_, Verdict(Mean(half.used) >= 0.93 * dense_),
        100 * half.Gain(), 100 * most.Gain(), Verdict(half.Gain() >= 0.01));
    std::printf("B3 cut within 1 point of routed (%.2f): %s\n", 100 * (with - without),
                Verdict(std::abs(with - without) <= 0.01));
    return absl::OkStatus();
  }

 private:
  // Accuracy with the most used head kept of every pruned layer, and with a random one; a seed.
  struct Heads {
    std::vector<double> used, random;
    double Gain() const { return Mean(used) - Mean(random); }
  };
  absl::StatusOr<Encoder> Load(const std::string& name, int seed) const {
    SLUICE_ASSIGN_OR_RETURN(const Gguf c, OpenTrained(o_, "shrp-" + name, seed));
    return Encoder::Load(file_, &c);
  }
  void Row(const std::string& name, const Measured& m) const {
    PrintRow("%-34s %9.4f %9.1f%% %12.4f\n", name, m.accuracy, 100 * m.accuracy / dense_, m.four);
  }
  absl::StatusOr<double> Measure(const std::string& name, const Encoder& e) const {
    SLUICE_ASSIGN_OR_RETURN(const Measured m, Accuracy(e, queries_, threads_));
    Row(name, m);
    return m.accuracy;
  }
  absl::StatusOr<Heads> CompareHeads(const std::string& run, const std::string& name) const {
    Heads heads;
    for (int seed = 1; seed <= kHeadSeeds; ++seed) {
      const auto measure = [&](const char* head, const char* what) -> absl::StatusOr<double> {
        Note(absl::StrCat(run, ", ", head, ", seed ", seed));
        SLUICE_ASSIGN_OR_RETURN(const Encoder e, Load(absl::StrCat(run, "-", head), seed));
        return Measure(absl::StrCat(name, ", ", what, ", seed ", seed), e);
      };
      SLUICE_ASSIGN_OR_RETURN(const double used, measure("usage_head", "most used head"));
      SLUICE_ASSIGN_OR_RETURN(const double random, measure("random_head", "random head"));
      heads.used.push_back(used);
      heads.random.push_back(random);
    }
    return heads;
  }
  void PrintHeads(const char* name, const Heads& h) const {
    std::printf(
        "%s: most used head %s (%.1f %% of dense), random head after the same training %s\n", name,
        MeanAndMargin(h.used, 4).c_str(), 100 * Mean(h.used) / dense_,
        MeanAndMargin(h.random, 4).c_str());
  }

  const EvaluateOptions& o_;
  const Gguf& file_;
  const std::vector<Query>& queries_;
  Executor& threads_;
  double dense_ = 0;
};
}  // namespace

absl::Status EvaluateShrp(const EvaluateOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(o.folder + "/intent-encoder-q8_0.gguf"));
  SLUICE_ASSIGN_OR_RETURN(const Encoder dense, Encoder::Load(file));
  const auto threads = MakeTbbExecutor(o.threads);
  std::printf(
      "SHRP (arXiv 2512.20635): encoder of %lld layers, %lld heads of %lld, %zu task families\n",
      static_cast<long long>(dense.shape().layers), static_cast<long long>(dense.shape().heads),
      static_cast<long long>(dense.shape().head_dim()), dense.labels().size());
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Query> queries, ReadSets(o, dense));
  if (!queries.empty()) SLUICE_RETURN_IF_ERROR(Accuracies(o, file, queries, *threads).Run(dense));
  return ShrpSpeed(o);
}

absl::Status ShrpSpeed(const EvaluateOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(o.folder + "/intent-encoder-q8_0.gguf"));
  SLUICE_ASSIGN_OR_RETURN(const Gguf six, OpenTrained(o, "shrp-half-usage_head", 1));
  SLUICE_ASSIGN_OR_RETURN(const Gguf eleven, OpenTrained(o, "shrp-most-usage_head", 1));
  SLUICE_ASSIGN_OR_RETURN(const Encoder dense, Encoder::Load(file));
  SLUICE_ASSIGN_OR_RETURN(const Encoder half, Encoder::Load(file, &six));
  SLUICE_ASSIGN_OR_RETURN(const Encoder most, Encoder::Load(file, &eleven));
  const auto threads = MakeTbbExecutor(o.threads);
  return Speed({{"dense", &dense}, {"half", &half}, {"all but one", &most}}, *threads, o.repeats);
}
}  // namespace lab
SLUICE_END_NAMESPACE
