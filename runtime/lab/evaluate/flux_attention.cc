#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/host/scoring.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/evaluate/trained.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
constexpr int kRandom = 5;
using Modes = std::vector<host::LayerMode>;

double Omega(const Modes& modes) {
  return static_cast<double>(std::count(modes.begin(), modes.end(), host::LayerMode::kSparse)) /
         static_cast<double>(modes.size());
}

// One prompt of each task over the same text: facts asked about at the end, decided by what stands
// before the first answer; the same without questions; and plain text.
struct Prompts {
  host::FactPrompt retrieval;
  std::vector<int32_t> unasked, plain;
};
// What stands before the first answer.
std::vector<int32_t> AskedPrompt(const host::FactPrompt& p) {
  return {p.tokens.begin(), p.tokens.begin() + host::BeforeAnswers(p.answer)};
}
Prompts MakePrompts(const host::Model& model, const std::vector<int32_t>& held, int64_t length,
                    int64_t pool, uint64_t seed) {
  const int64_t room = static_cast<int64_t>(held.size()) - 2 * length;
  const auto at =
      static_cast<int64_t>(RandomBits({seed, 9, 0, 0, 0}) % static_cast<uint64_t>(room));
  Prompts p;
  const std::vector<int32_t> text(held.begin() + at, held.begin() + at + 2 * length);
  p.retrieval = host::PlantFacts(model.tokenizer, text, length, 4, seed);
  p.plain.assign(text.begin() + length, text.end());
  // B4: the prompt that routing sees, its last P tokens swapped for text.
  p.unasked = AskedPrompt(p.retrieval);
  const int64_t tail = std::min(pool, static_cast<int64_t>(p.unasked.size()));
  std::copy(p.plain.end() - tail, p.plain.end(), p.unasked.end() - tail);
  return p;
}

struct TaskResult {
  double omega_retrieval = 0, omega_holistic = 0, accuracy = 0, perplexity = 0;
  std::vector<Modes> asked, unasked;
};
// `pool`: tokens at the prompt's end that are swapped, 0: none.
absl::StatusOr<TaskResult> MeasureTasks(const host::Model& model, const std::vector<int32_t>& held,
                                        const EvaluateOptions& o, const host::LayerRouting& layers,
                                        int64_t pool, const std::string& what) {
  host::EngineOptions eo;
  eo.layers = layers;
  eo.threads = o.threads;
  eo.max_tokens = o.length + 1;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e, host::Engine::Create(model, eo));
  TaskResult r;
  double right = 0, asked = 0, nll = 0;
  for (int64_t i = 0; i < o.prompts; ++i) {
    Note(absl::StrCat(what, ", prompt ", i + 1, "/", o.prompts));
    const Prompts p = MakePrompts(model, held, o.length, pool, static_cast<uint64_t>(100 + i));
    SLUICE_ASSIGN_OR_RETURN(
        const host::Score s,
        host::ScoreMarked(*e, p.retrieval.tokens, p.retrieval.answer, p.retrieval.text));
    right += s.accuracy * static_cast<double>(s.asked);
    asked += static_cast<double>(s.asked);
    r.asked.push_back(e->modes());
    SLUICE_ASSIGN_OR_RETURN(const double ppl, host::Perplexity(*e, p.plain));
    nll += std::log(ppl);
    const Modes holistic = e->modes();
    if (layers.on()) {
      r.omega_retrieval += Omega(r.asked.back()) / static_cast<double>(o.prompts);
      r.omega_holistic += Omega(holistic) / static_cast<double>(o.prompts);
    }
    if (pool > 0) {
      e->Reset();
      SLUICE_RETURN_IF_ERROR(e->Feed(p.unasked, o.length));
      r.unasked.push_back(e->modes());
    }
  }
  r.accuracy = right / asked;
  r.perplexity = std::exp(nll / static_cast<double>(o.prompts));
  return r;
}
Modes RandomModes(size_t layers, double omega, uint64_t seed) {
  std::vector<size_t> order(layers);
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = layers; i-- > 1;)
    std::swap(order[i], order[RandomBits({seed, 3, 0, 0, i}) % (i + 1)]);
  Modes m(layers, host::LayerMode::kFull);
  for (size_t i = 0; i < static_cast<size_t>(std::lround(omega * static_cast<double>(layers))); ++i)
    m[order[i]] = host::LayerMode::kSparse;
  return m;
}
// Of the layers that are not always the same, the share that change between the two prompts of a
// pair.
struct Flips {
  double share = 0;
  size_t open_layers = 0;
};
Flips FlipsOf(const TaskResult& r) {
  Flips f;
  for (size_t layer = 0; layer < r.asked[0].size(); ++layer) {
    size_t full = 0, changed = 0;
    for (size_t i = 0; i < r.asked.size(); ++i) {
      full += (r.asked[i][layer] == host::LayerMode::kFull) +
              (r.unasked[i][layer] == host::LayerMode::kFull);
      changed += r.asked[i][layer] != r.unasked[i][layer];
    }
    if (full == 0 || full == 2 * r.asked.size()) continue;
    ++f.open_layers;
    f.share += static_cast<double>(changed) / static_cast<double>(r.asked.size());
  }
  if (f.open_layers > 0) f.share /= static_cast<double>(f.open_layers);
  return f;
}

void PrintTaskRow(const std::string& name, const TaskResult& r, const std::string& flips) {
  PrintRow("%-22s %10.3f %10.3f %10.4f %10.3f %8s\n", name, r.omega_retrieval, r.omega_holistic,
           r.accuracy, r.perplexity, flips);
}
// What the training seeds of one target gave, one value a seed.
struct Learned {
  std::vector<double> retrieval, holistic, accuracy, perplexity, flips;
  std::vector<Gguf> files;
};
absl::StatusOr<Learned> MeasureLearned(const host::Model& model, const std::vector<int32_t>& held,
                                       const EvaluateOptions& o, const char* file,
                                       const char* target) {
  Learned l;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    const std::string name = absl::StrCat("target ", target, ", seed ", seed);
    SLUICE_ASSIGN_OR_RETURN(Gguf weights, OpenTrained(o, file, seed));
    SLUICE_ASSIGN_OR_RETURN(const int64_t pool, weights.Int("sluice.flux.pool"));
    host::LayerRouting layers;
    layers.router = "layer/flux_attention";
    layers.weights = &weights;
    SLUICE_ASSIGN_OR_RETURN(const TaskResult r, MeasureTasks(model, held, o, layers, pool, name));
    const Flips flips = FlipsOf(r);
    PrintTaskRow(name, r, absl::StrCat(std::lround(100 * flips.share), "%/", flips.open_layers));
    l.flips.push_back(flips.share);
    l.retrieval.push_back(r.omega_retrieval);
    l.holistic.push_back(r.omega_holistic);
    l.accuracy.push_back(r.accuracy);
    l.perplexity.push_back(r.perplexity);
    l.files.push_back(std::move(weights));
  }
  return l;
}
// The accuracy of random layers at the learned routers' rate.
absl::StatusOr<std::vector<double>> MeasureRandom(const host::Model& model,
                                                  const std::vector<int32_t>& held,
                                                  const EvaluateOptions& o, double omega) {
  std::vector<double> accuracy;
  for (int i = 0; i < kRandom; ++i) {
    const std::string name = absl::StrCat("random ", i + 1);
    host::LayerRouting layers;
    layers.fixed =
        RandomModes(static_cast<size_t>(model.shape.layers), omega, static_cast<uint64_t>(i));
    SLUICE_ASSIGN_OR_RETURN(const TaskResult r, MeasureTasks(model, held, o, layers, 0, name));
    PrintTaskRow(name, r, "-");
    accuracy.push_back(r.accuracy);
  }
  return accuracy;
}

void PrintMeans(const char* target, const Learned& l) {
  std::printf("target %s, mean over %d seeds (%s): sparse layers %s (retrieval), %s (holistic); ",
              target, kSeeds, kMarginNote, MeanAndMargin(l.retrieval, 3).c_str(),
              MeanAndMargin(l.holistic, 3).c_str());
  std::printf("facts %s; perplexity %s\n", MeanAndMargin(l.accuracy, 4).c_str(),
              MeanAndMargin(l.perplexity, 3).c_str());
}
void PrintVerdicts(const TaskResult& dense, const Learned& l, const std::vector<double>& random) {
  const double retrieval = Mean(l.retrieval), holistic = Mean(l.holistic);
  std::printf("B2 sparse layers within 0.10 of 0.45 and 1.00, apart by 0.25: %s\n",
              Verdict(std::abs(retrieval - 0.45) <= 0.10 && std::abs(holistic - 1.0) <= 0.10 &&
                      holistic - retrieval >= 0.25));

  const double accuracy = Mean(l.accuracy);
  const double lost = dense.accuracy - accuracy;
  const double random_lost = dense.accuracy - Mean(random);
  std::printf(
      "B3 facts at least 97 %% of dense (%.1f %%), random subsets lose 3x the points (%.1f against "
      "%.1f): %s\n",
      100 * accuracy / dense.accuracy, 100 * random_lost, 100 * lost,
      Verdict(accuracy >= 0.97 * dense.accuracy && random_lost >= 3 * std::max(lost, 0.0) &&
              random_lost > 0));
  std::vector<double> flips = l.flips;
  for (double& x : flips) x *= 100;
  std::printf("B4 questions at the pooled end flip 20 %% of the layers that vary (%s %%): %s\n",
              MeanAndMargin(flips, 0).c_str(), Verdict(Mean(l.flips) >= 0.2));
}

// Prefill of one prompt, dense and routed in turn, and decode after it.
absl::StatusOr<double> Speed(const host::Model& model, const Gguf& weights, const char* name,
                             const std::vector<int32_t>& tokens, const EvaluateOptions& o) {
  host::EngineOptions options;
  options.threads = o.threads;
  options.max_tokens = o.speed_length + 64;
  options.layers.router = "layer/flux_attention";
  options.layers.weights = &weights;
  SLUICE_ASSIGN_OR_RETURN(EnginePair pair, EnginePair::Create(model, options));
  std::vector<double> dense_s, routed_s, speed, share, router, decode;
  double omega = 0;
  for (int64_t i = 0; i < o.repeats; ++i) {
    Note(absl::StrCat(name, " prefill ", i + 1, "/", o.repeats));
    SLUICE_RETURN_IF_ERROR(pair.Prefill(tokens));
    const host::Timing& dense = pair.dense->timing();
    const host::Timing& routed = pair.routed->timing();
    omega = Omega(pair.routed->modes());
    // What could be saved at most: the share of dense attention that the sparse layers' plans
    // leave out.
    const double ceiling =
        dense.total_s / (dense.total_s - dense.attend_s * (1 - pair.PairsKept()));
    dense_s.push_back(dense.total_s);
    routed_s.push_back(routed.total_s);
    speed.push_back(dense.total_s / routed.total_s);
    share.push_back(speed.back() / ceiling);
    router.push_back(routed.route_s / routed.total_s);

    const double before = routed.total_s;
    for (int k = 0; k < 32; ++k) SLUICE_RETURN_IF_ERROR(pair.routed->Feed({100 + k}, 1 << 30));
    decode.push_back((pair.routed->timing().total_s - before) * 1e3 / 32);
  }
  PrintRow("%-16s %8.3f %10.3f %10.3f %9.2fx %12.3f %9.2f%% %10.2f\n", name, omega, Median(dense_s),
           Median(routed_s), Median(speed), Median(share), 100 * Median(router), Median(decode));
  std::printf("B5 router at most 1 %% of prefill, speed at least 0.8 of the ceiling: %s\n",
              Verdict(Median(router) <= 0.01 && Median(share) >= 0.8));
  return Median(speed);
}
// B6: what one step reads of a sparse layer's cache, after prompts of growing length.
absl::Status Reads(const host::Model& model, const std::vector<int32_t>& held,
                   const EvaluateOptions& o) {
  host::EngineOptions options;
  options.threads = o.threads;
  options.max_tokens = o.speed_length + 1;
  options.layers.fixed = Modes(static_cast<size_t>(model.shape.layers), host::LayerMode::kSparse);
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<host::Engine> e,
                          host::Engine::Create(model, options));
  std::vector<int64_t> bytes;
  std::string said;
  for (int64_t length = std::min<int64_t>(4096, o.speed_length);; length *= 2) {
    length = std::min(length, o.speed_length);
    Note(absl::StrCat("a step after ", length, " tokens"));
    e->Reset();
    SLUICE_RETURN_IF_ERROR(e->Feed({held.begin(), held.begin() + length}, length));
    const int64_t before = e->layer_counters(0).kv_bytes;
    SLUICE_RETURN_IF_ERROR(e->Feed({held[length]}, length + 1));
    bytes.push_back(e->layer_counters(0).kv_bytes - before);
    absl::StrAppend(&said, said.empty() ? "" : ", ", bytes.back(), " at ", length);
    if (length == o.speed_length) break;
  }
  const auto [least, most] = std::minmax_element(bytes.begin(), bytes.end());
  const int64_t block =
      64 * model.shape.kv_heads * 2 * model.shape.head_dim * static_cast<int64_t>(sizeof(float));
  ClearNote();
  std::printf(
      "B6 bytes that a step reads of a sparse layer's cache, the same to a block of %lld: %s: %s\n",
      static_cast<long long>(block), said.c_str(), Verdict(*most - *least <= block));
  return absl::OkStatus();
}
}  // namespace

absl::Status EvaluateFluxAttention(const host::Model& model, const EvaluateOptions& o) {
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> held, ReadHeldOut(o));
  if (o.length < 256 || 2 * o.length >= static_cast<int64_t>(held.size()) ||
      o.speed_length >= static_cast<int64_t>(held.size()))
    return absl::InvalidArgumentError(absl::StrCat("prompts of ", o.length, " and ", o.speed_length,
                                                   " tokens; allowed 256 to ", held.size() / 2 - 1,
                                                   " and at most ", held.size() - 1));
  const size_t layers = static_cast<size_t>(model.shape.layers);
  SLUICE_ASSIGN_OR_RETURN(const TaskResult dense, MeasureTasks(model, held, o, {}, 0, "dense"));
  std::printf(
      "Flux Attention (arXiv 2604.07394), %zu layers, %lld prompts of %lld tokens a task, held-out "
      "text\n\n",
      layers, static_cast<long long>(o.prompts), static_cast<long long>(o.length));
  std::printf("%-22s %10s %10s %10s %10s %8s\n", "layers", "sparse:ret", "sparse:hol", "facts",
              "ppl", "flips");
  PrintTaskRow("all full", dense, "-");

  host::LayerRouting all;
  all.fixed = Modes(layers, host::LayerMode::kSparse);
  SLUICE_ASSIGN_OR_RETURN(const TaskResult sparse,
                          MeasureTasks(model, held, o, all, 0, "all sparse"));
  PrintTaskRow("all sparse", sparse, "-");
  SLUICE_ASSIGN_OR_RETURN(const Learned learned,
                          MeasureLearned(model, held, o, "flux_attention", "0.45"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<double> random,
                          MeasureRandom(model, held, o, Mean(learned.retrieval)));
  SLUICE_ASSIGN_OR_RETURN(const Learned deep,
                          MeasureLearned(model, held, o, "flux_attention-deep", "0.83"));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<double> deep_random,
                          MeasureRandom(model, held, o, Mean(deep.retrieval)));
  std::printf("\n");
  PrintMeans("0.45", learned);
  PrintVerdicts(dense, learned, random);
  PrintMeans("0.83", deep);
  std::printf("facts within a point of dense (%.4f against %.4f; random layers %.4f): %s\n",
              Mean(deep.accuracy), dense.accuracy, Mean(deep_random),
              Verdict(dense.accuracy - Mean(deep.accuracy) <= 0.01));
  if (o.speed_length == 0) return absl::OkStatus();

  // Speed, on a retrieval prompt and on text without questions.
  std::printf("\n%-16s %8s %10s %10s %10s %12s %10s %10s\n", "prefill", "sparse", "dense s",
              "routed s", "speed", "of ceiling", "router", "decode ms");
  const std::vector<int32_t> asked =
      AskedPrompt(host::PlantFacts(model.tokenizer, held, o.speed_length, 4, 1));
  const std::vector<int32_t> plain(held.begin(), held.begin() + o.speed_length);
  SLUICE_RETURN_IF_ERROR(Speed(model, learned.files[0], "retrieval, 0.45", asked, o).status());
  SLUICE_RETURN_IF_ERROR(Speed(model, learned.files[0], "holistic, 0.45", plain, o).status());
  SLUICE_ASSIGN_OR_RETURN(const double speed,
                          Speed(model, deep.files[0], "retrieval, 0.83", asked, o));
  std::printf("target 0.83: prefill at least 2.0x dense (%.2f): %s\n", speed,
              Verdict(speed >= 2.0));
  return Reads(model, held, o);
}
}  // namespace lab
SLUICE_END_NAMESPACE
