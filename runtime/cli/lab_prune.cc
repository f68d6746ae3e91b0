// prune: a model's file with weights, layers, heads, neurons or experts left out, as a file of its
// own.
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/lab/prune/prune.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
void AddPrune(CLI::App& app, const Exit& exit) {
  auto o = std::make_shared<lab::PruneOptions>();
  auto* s = app.add_subcommand("prune",
                               "Prune a model's weights, layers, heads, neurons or experts on a "
                               "text; writes a model of its own");
  s->add_option("in", o->in, "GGUF file (Llama architecture; F32, F16 or Q8_0); only read")
      ->required();
  s->add_option("out", o->out, "GGUF file to write, of the same types")->required();
  s->add_option("--method", o->method,
                "magnitude, wanda, sparse_gpt, dsnot or another pruner of weights, "
                "name:key=value,... (`sluice list`); or layers, heads (KV heads with their query "
                "heads), query_heads (of every KV head as many), neurons or experts, whole ones")
      ->capture_default_str();
  s->add_option("--sparsity", o->sparsity, "share that goes, 0 to below 1")
      ->capture_default_str()
      ->check(Allowed(0.0, 1.0));
  s->add_option("--pattern", o->pattern,
                "N:M, N of every M neighbours stay; or ROWSxCOLUMNS, whole blocks (default: any "
                "weights)");
  s->add_option("--scope", o->scope, "what the share is of: row or layer (a whole matrix)")
      ->capture_default_str();
  s->add_option("--start", o->start,
                "pruner whose mask a repair as dsnot starts from (default: wanda)");
  s->add_flag("--repair-attention-only", o->repair_attention_only,
              "repair no matrix of the feed-forward part, as DSnoT's program does");
  s->add_option("--calibrate", o->calibrate,
                absl::StrCat("text to calibrate on, or ", kTokensHelp));
  s->add_option("--skip", o->skip, "tokens of it to skip")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, kMostTokens));
  s->add_option("--count", o->count, "tokens to calibrate on")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, kMostTokens));
  s->add_option("--window", o->window, "tokens a sequence, at most the model's context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, kMostTokens));
  s->add_option("--held-out", o->held_out,
                "text or token ids for perplexity before and after, without what is calibrated on "
                "(default: what follows that)");
  s->add_option("--held-out-skip", o->held_out_skip, "tokens of it to skip")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, kMostTokens));
  s->add_option("--held-out-count", o->held_out_count,
                "held-out tokens, in whole windows spread over the text")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, kMostTokens));
  AddThreads(*s, o->threads);
  s->footer(
      "Example: sluice prune model.gguf half.gguf --method sparse_gpt --sparsity 0.5 --pattern 2:4 "
      "--calibrate book.txt");
  s->callback([=] { exit(Done(lab::RunPrune(*o))); });
}
}  // namespace cli
SLUICE_END_NAMESPACE
