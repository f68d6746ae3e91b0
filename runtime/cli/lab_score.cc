// perplexity, facts, generate: what a model says under a router.
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/lab/generate.h"
#include "sluice/runtime/lab/score.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
void AddPerplexity(CLI::App& app, const Exit& exit) {
  struct Args {
    LabModel model;
    lab::PerplexityOptions o;
  };
  auto a = std::make_shared<Args>();
  auto* s = app.add_subcommand("perplexity", "Perplexity over a file of token ids");
  a->model.AddRoutedTo(*s);
  s->add_option("--tokens", a->o.tokens, kTokensHelp)->required();
  s->add_option("--skip", a->o.skip, "tokens to skip")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, kMostTokens));
  s->add_option("--count", a->o.count, "tokens per window, at most the model's context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, kMostTokens));
  s->add_option("--windows", a->o.windows, "consecutive windows, each with an empty context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000000));
  s->add_option("--nll", a->o.nll,
                "write the negative log-likelihoods of the last window as float32");
  s->footer("Example: sluice perplexity --tokens eval.u16 --count 16384 --windows 4");
  s->callback([=] {
    const auto model = a->model.Load();
    exit(model.ok() ? Done(lab::RunPerplexity(*model, a->model.engine, a->o))
                    : Fail(model.status()));
  });
}
void AddFacts(CLI::App& app, const Exit& exit) {
  struct Args {
    LabModel model;
    lab::FactsOptions o;
    LabFacts facts;
  };
  auto a = std::make_shared<Args>();
  auto* s = app.add_subcommand("facts", "Accuracy on planted facts in held-out text");
  a->model.AddRoutedTo(*s);
  s->add_option("--tokens", a->o.tokens, kTokensHelp)->required();
  s->add_option("--length", a->o.length, "tokens per prompt, at most the model's context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, kMostTokens));
  a->facts.AddTo(*s, a->o.facts, "facts per prompt");
  s->add_option("--prompts", a->o.prompts, "prompts")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000000));
  s->footer("Example: sluice facts --tokens eval.u16 --length 8192 --facts 8 --facts wording.json");
  s->callback([=] {
    const auto facts = a->facts.Read(a->o.facts);
    if (!facts.ok()) return exit(Fail(facts.status()));
    a->o.facts = facts->count;
    a->o.wording = facts->wording;
    const auto model = a->model.Load();
    exit(model.ok() ? Done(lab::RunFacts(*model, a->model.engine, a->o)) : Fail(model.status()));
  });
}
void AddGenerate(CLI::App& app, const Exit& exit) {
  struct Args {
    LabModel model;
    lab::GenerateOptions o;
  };
  auto a = std::make_shared<Args>();
  auto* s = app.add_subcommand("generate", "Continue a prompt");
  a->model.AddRoutedTo(*s);
  s->add_option("--prompt", a->o.prompt, "text to continue")->capture_default_str();
  s->add_option("--count", a->o.count, "tokens to generate")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, kMostTokens));
  s->add_option("--temperature", a->o.sampling.temperature, "0: greedy")
      ->capture_default_str()
      ->check(Allowed(0.0, 1e6));
  s->add_option("--top-k", a->o.sampling.top_k, "candidates when sampling; 0: all")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, INT32_MAX));
  s->add_option("--seed", a->o.sampling.seed, "of the sampling")
      ->capture_default_str()
      ->check(Allowed<uint64_t>(0, UINT64_MAX));
  s->footer("Example: sluice generate --prompt 'The kernel' --temperature 0.8");
  s->callback([=] {
    const auto model = a->model.Load();
    exit(model.ok() ? Done(lab::RunGenerate(*model, a->model.engine, a->o)) : Fail(model.status()));
  });
}
}  // namespace

void AddScoring(CLI::App& app, const Exit& exit) {
  AddPerplexity(app, exit);
  AddFacts(app, exit);
  AddGenerate(app, exit);
}
}  // namespace cli
SLUICE_END_NAMESPACE
