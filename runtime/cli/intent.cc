// Training and judging the hashed n-gram intent model.
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/hash.h"
#include "sluice/runtime/cli/commands.h"
#include "sluice/runtime/service/intent.h"
#include "sluice/runtime/text/ngram_classifier.h"
#include "sluice/runtime/text/text_file.h"
#include "sluice/runtime/weights/gguf_writer.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
struct Labelled {
  std::vector<std::string> ids, labels;  // ids: one an example
  std::vector<NgramClassifier::Example> examples;
};
absl::StatusOr<Labelled> ReadQueries(const std::string& path, const std::string& field) {
  SLUICE_ASSIGN_OR_RETURN(const std::string all, ReadTextFile(path));
  Labelled out;
  std::map<std::string, int> label;
  int64_t n = 0;
  for (absl::string_view line : absl::StrSplit(absl::StripSuffix(all, "\n"), '\n')) {
    ++n;
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (json.is_discarded() || !json.contains("text") || !json.contains(field) ||
        !json["text"].is_string() || !json[field].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ":", n, ": wanted a JSON object with strings \"text\" and \"", field, "\""));
    }
    const auto [at, fresh] =
        label.emplace(json[field].get<std::string>(), static_cast<int>(label.size()));
    if (fresh) out.labels.push_back(at->first);
    out.examples.push_back({json["text"].get<std::string>(), at->second});
    out.ids.push_back(json.contains("qid") && json["qid"].is_string()
                          ? json["qid"].get<std::string>()
                          : absl::StrCat(n));
  }
  if (out.examples.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no queries"));
  return out;
}
// Which fold an example belongs to: by its id, so a repeated query never is on both sides.
int Fold(const std::string& id, int folds) {
  return static_cast<int>(HashText(id) % static_cast<uint64_t>(folds));
}
absl::StatusOr<NgramClassifier> TrainOn(const Labelled& all, const std::vector<char>& out,
                                        const NgramClassifier::TrainOptions& o) {
  std::vector<NgramClassifier::Example> some;
  for (size_t i = 0; i < all.examples.size(); ++i) {
    if (!out[i]) some.push_back(all.examples[i]);
  }
  return NgramClassifier::Train(some, all.labels, o, [&](int64_t epoch, double loss) {
    if (isatty(2))
      std::fprintf(stderr, "\repoch %2lld of %lld, loss %.4f%s", static_cast<long long>(epoch + 1),
                   static_cast<long long>(o.epochs), loss, epoch + 1 == o.epochs ? "\r\033[K" : "");
  });
}
void PrintAccuracy(const Labelled& all, const std::vector<int>& right,
                   const std::vector<int>& total) {
  int r = 0, t = 0;
  for (size_t c = 0; c < all.labels.size(); ++c) {
    std::printf("  %-24s %5d of %5d  %.4f\n", all.labels[c].c_str(), right[c], total[c],
                total[c] > 0 ? right[c] / static_cast<double>(total[c]) : 0.0);
    r += right[c];
    t += total[c];
  }
  std::printf("held-out accuracy %.4f (%d of %d)\n", t > 0 ? r / static_cast<double>(t) : 0.0, r,
              t);
}
absl::Status Save(const NgramClassifier& m, const std::string& path) {
  GgufWriter w;
  w.Set("general.architecture", std::string("sluice-intent"));
  w.Set("sluice.intent.bits", m.bits());
  w.Set("sluice.intent.labels", m.labels());
  SLUICE_RETURN_IF_ERROR(w.Add("intent.weight", {m.labels().size(), uint64_t{1} << m.bits()},
                               m.weights(), GgufType::kF16));
  SLUICE_RETURN_IF_ERROR(w.Add("intent.bias", {m.labels().size()}, m.bias()));
  return w.Write(path);
}
int Train(const std::string& in, const std::string& field, const std::string& out, double holdout,
          const NgramClassifier::TrainOptions& o) {
  const auto all = ReadQueries(in, field);
  if (!all.ok()) return Fail(all.status());
  std::vector<char> held(all->examples.size());
  constexpr int kGrain = 1000;
  for (size_t i = 0; i < held.size(); ++i) held[i] = Fold(all->ids[i], kGrain) < holdout * kGrain;
  const auto model = TrainOn(*all, held, o);
  if (!model.ok()) return Fail(model.status());
  std::vector<int> right(all->labels.size()), total(all->labels.size());
  for (size_t i = 0; i < held.size(); ++i) {
    if (!held[i]) continue;
    const std::vector<double> p = model->Infer(all->examples[i].text);
    const auto label = static_cast<size_t>(all->examples[i].label);
    ++total[label];
    right[label] +=
        std::max_element(p.begin(), p.end()) - p.begin() == static_cast<std::ptrdiff_t>(label);
  }
  PrintAccuracy(*all, right, total);
  if (const absl::Status status = Save(*model, out); !status.ok()) return Fail(status);
  std::printf("wrote %s\n", out.c_str());
  return 0;
}
// Every query by a model that has not seen it: CSV of id, intent:LABEL..., feature:N... The
// features are a signed random projection of the n-grams.
int CrossFit(const std::string& in, const std::string& field, const std::string& out, int folds,
             int width, const NgramClassifier::TrainOptions& o) {
  const auto all = ReadQueries(in, field);
  if (!all.ok()) return Fail(all.status());
  std::vector<std::vector<double>> p(all->examples.size());
  std::vector<int> right(all->labels.size()), total(all->labels.size());
  for (int fold = 0; fold < folds; ++fold) {
    std::vector<char> held(all->examples.size());
    for (size_t i = 0; i < held.size(); ++i) held[i] = Fold(all->ids[i], folds) == fold;
    const auto model = TrainOn(*all, held, o);
    if (!model.ok()) return Fail(model.status());
    for (size_t i = 0; i < held.size(); ++i) {
      if (!held[i]) continue;
      p[i] = model->Infer(all->examples[i].text);
      const auto label = static_cast<size_t>(all->examples[i].label);
      ++total[label];
      right[label] += std::max_element(p[i].begin(), p[i].end()) - p[i].begin() ==
                      static_cast<std::ptrdiff_t>(label);
    }
  }
  PrintAccuracy(*all, right, total);
  FILE* f = std::fopen(out.c_str(), "w");
  if (f == nullptr) return Fail(absl::UnavailableError(out + ": cannot be written"));
  std::fprintf(f, "id");
  for (const std::string& l : all->labels) std::fprintf(f, ",intent:%s", l.c_str());
  for (int k = 0; k < width; ++k) std::fprintf(f, ",feature:%d", k);
  for (size_t i = 0; i < p.size(); ++i) {
    std::fprintf(f, "\n%s", all->ids[i].c_str());
    for (double w : p[i]) std::fprintf(f, ",%.4f", w);
    std::vector<double> x(width);
    for (const auto& g : NgramClassifier::Features(all->examples[i].text, o.bits)) {
      for (int k = 0; k < width; ++k)
        x[k] +=
            g.value * ((RandomBits({g.bucket, 3, static_cast<uint64_t>(k), 0, 0}) & 1) ? 1 : -1);
    }
    for (double v : x) std::fprintf(f, ",%.3f", v);
  }
  std::fprintf(f, "\n");
  const bool bad = std::fclose(f) != 0;
  return bad ? Fail(absl::UnavailableError(out + ": cannot be written")) : 0;
}
int Classify(const std::string& path, const std::string& text) {
  const auto file = Gguf::Open(path);
  if (!file.ok()) return Fail(file.status());
  const auto labels = file->Texts(
      file->Has("sluice.intent.labels") ? "sluice.intent.labels" : "bert.classifier.output_labels");
  if (!labels.ok()) return Fail(labels.status());
  const auto model = LoadIntentModel(path, **labels);
  if (!model.ok()) return Fail(model.status());
  std::vector<double> p((*labels)->size());
  if (const absl::Status status = (*model)->Infer(text, absl::MakeSpan(p)); !status.ok())
    return Fail(status);
  for (size_t i = 0; i < p.size(); ++i) std::printf("%-24s %.4f\n", (**labels)[i].c_str(), p[i]);
  return 0;
}
}  // namespace

void AddIntent(CLI::App& app, const Exit& exit) {
  auto* intent =
      app.add_subcommand("intent", "What a query is about: train and use the n-gram classifier");
  intent->require_subcommand(1);
  intent->footer("Example: sluice intent train --in queries.jsonl.gz --out intent.gguf");
  struct Args {
    std::string in, field = "task", out, model, text;
    double holdout = 0.15;
    int folds = 5, width = 16;
    NgramClassifier::TrainOptions o;
  };
  auto a = std::make_shared<Args>();
  auto training = [&](CLI::App* s) {
    s->add_option("--in", a->in, "queries, JSON lines (plain or gzip) with \"text\" and the label")
        ->required();
    s->add_option("--field", a->field, "which field is the label")->capture_default_str();
    s->add_option("--out", a->out, "file to write")->required();
    s->add_option("--bits", a->o.bits, "log2 of the number of buckets")
        ->capture_default_str()
        ->check(CLI::Range(8, 24));
    s->add_option("--epochs", a->o.epochs, "passes over the queries")
        ->capture_default_str()
        ->check(CLI::Range(1, 10000));
    s->add_option("--seed", a->o.seed, "of the order")->capture_default_str();
  };
  auto* train = intent->add_subcommand(
      "train", "Train on a part, say how the rest is classified, write a GGUF file");
  training(train);
  train->add_option("--holdout", a->holdout, "share kept out, by hash of the id")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 0.9));
  train->footer("Example: sluice intent train --in queries.jsonl.gz --out intent.gguf");
  train->callback([=] { exit(Train(a->in, a->field, a->out, a->holdout, a->o)); });
  auto* cross = intent->add_subcommand(
      "crossfit", "Classify every query by a model that has not seen it; write CSV");
  training(cross);
  cross->add_option("--folds", a->folds, "parts")->capture_default_str()->check(CLI::Range(2, 100));
  cross->add_option("--width", a->width, "projected features beside")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024));
  cross->footer("Example: sluice intent crossfit --in queries.jsonl.gz --out intents.csv");
  cross->callback([=] { exit(CrossFit(a->in, a->field, a->out, a->folds, a->width, a->o)); });
  auto* classify =
      intent->add_subcommand("classify", "Print a text's distribution over the model's tasks");
  classify->add_option("--model", a->model, "GGUF file")->required();
  classify->add_option("text", a->text, "the query")->required();
  classify->footer("Example: sluice intent classify --model intent.gguf \"What is 17 * 3?\"");
  classify->callback([=] { exit(Classify(a->model, a->text)); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
