// classify, prune-encoder: the bundled encoder, and what is left of it after pruning.
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/encoder.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
void AddEncoder(CLI::App& app, const Exit& exit) {
  const std::string bundled = host::ModelsFolder() + "/intent-encoder-q8_0.gguf";
  {
    auto encoder = std::make_shared<std::string>(bundled);
    auto text = std::make_shared<std::string>();
    auto* s = app.add_subcommand("classify", "Which task family is this query of?");
    s->add_option("--encoder", *encoder, "encoder, dense or pruned, GGUF")->capture_default_str();
    s->add_option("--text", *text, "the query")->required();
    s->footer("Example: sluice classify --text 'What is 12 times 7?'");
    s->callback([=] { exit(Done(lab::Classify(*encoder, *text))); });
  }
  {
    auto encoder = std::make_shared<std::string>(bundled);
    auto conversion = std::make_shared<std::string>();
    auto out = std::make_shared<std::string>("pruned.gguf");
    auto* s = app.add_subcommand(
        "prune-encoder",
        "Cut an encoder converted by SHRP to its most used heads; writes a model of its own");
    s->add_option("--encoder", *encoder, "dense encoder, GGUF")->capture_default_str();
    s->add_option("--conversion", *conversion, "converted layers, routed or pruned, GGUF")
        ->required();
    s->add_option("--out", *out, "GGUF file to write")->capture_default_str();
    s->footer(
        "Example: sluice prune-encoder --conversion shrp-half-routed-s1.gguf --out pruned.gguf");
    s->callback([=] { exit(Done(lab::PruneEncoder(*encoder, *conversion, *out))); });
  }
}
}  // namespace cli
SLUICE_END_NAMESPACE
