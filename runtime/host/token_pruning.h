#ifndef SLUICE_RUNTIME_HOST_TOKEN_PRUNING_H_
#define SLUICE_RUNTIME_HOST_TOKEN_PRUNING_H_
// Which tokens of a prompt a block computes at all; the others ride the residual stream and leave
// no key behind. The first block is dense and fills the score table; the caches of the others hold
// only the tokens they computed, at their absolute positions.
#include <cstdint>
#include <string>
#include <vector>

#include "sluice/runtime/host/item_routers.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/host/received_attention.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
struct TokenPruning {
  // A token router by name, made once a block with `sparsity` and, where it has them, `layer` and
  // `causal` added to its options. Its host unit is the block.
  std::string router;
  const WeightSource* weights = nullptr;  // of the router, unless its text names a file
  std::vector<double> sparsity;           // of every block
  // Scores by each token's own query, ranks among earlier tokens: for teacher forcing. Needs a
  // router with such a key.
  bool causal = false;
  // Single tokens after the prompt skip the blocks with sparsity above this; 1: none. A router that
  // reads something of the token is asked too.
  double decode = 1;
  // Decides after the block's attention, from its scores: every token attends and leaves its key,
  // and only the FFN is skipped. The paper's figure shows this, its text the whole block.
  bool after_attention = false;
  bool on() const { return !router.empty(); }
};

class TokenPruner {
 public:
  // Inferred: the last computed queries vote.
  static constexpr int64_t kScoreQueries = 64;

  // `capacity`: tokens of a sequence.
  static absl::StatusOr<TokenPruner> Create(const TokenPruning& options, const ModelShape& shape,
                                            int64_t capacity, Executor* executor);

  // The tokens among [begin, begin + n) that a block computes, ascending.
  absl::Status Choose(int64_t layer, int64_t begin, int64_t n, std::vector<int32_t>& chosen);

  // Whether Choose reads what Score and AddQueries leave.
  bool scores() const { return (routers_.traits().reads & kReadsFeedback) != 0; }
  // Queries of one pass of the running block, rotated: q [n, heads, head_dim], rows `stride` apart.
  void BeginQueries() { queries_.clear(); }
  void AddQueries(const float* q, int64_t stride, int64_t n);
  // The attention that the block's keys received becomes the score of the tokens that it computed;
  // the others keep theirs. The newest keys are those of `computed`.
  void Score(const KvView& keys, const std::vector<int32_t>& computed);

 private:
  TokenPruner(const TokenPruning& options, const ModelShape& shape, Executor* executor)
      : options_(options), shape_(shape), routers_(executor) {}

  TokenPruning options_;
  ModelShape shape_;
  ItemRouters routers_;
  int32_t compute_ = 0;
  ReceivedAttention received_;
  std::vector<float> score_;  // [capacity]
  std::vector<float> block_score_;
  std::vector<float> queries_;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_TOKEN_PRUNING_H_
