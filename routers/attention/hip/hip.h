#ifndef SLUICE_ROUTERS_ATTENTION_HIP_HIP_H_
#define SLUICE_ROUTERS_ATTENTION_HIP_HIP_H_
// HiP (arXiv 2406.09827): per query block, a binary search over the history. The range between sink
// and window is cut into mask_k / block_k groups; each round halves every group, scores a half by
// the largest product of its centre key with the block's (strided) queries, and keeps the best half
// of the halves. Training-free; a representative may miss a spike. Sink and window lie outside the
// budget. O(log(keys / mask_k) * mask_k / block_k) key reads per query block.
#include "sluice/api/attention_router.h"
#include "sluice/routers/attention/common/planning.h"
#include "sluice/runtime/kernels/convert/convert.h"
#include "sluice/runtime/kernels/gemm/gemm.h"

SLUICE_BEGIN_NAMESPACE
class Hip {
 public:
  static constexpr absl::string_view kName = "hip";
  static constexpr bool kExactAtFullBudget = true, kTokenCausal = false;
  struct Config {
    int64_t mask_k = 512, block_q = 64, stride_q = 2, block_k = 2, sink = 16, window = 256;
    template <class V>
    void VisitFields(V&& v) {
      v("mask_k", mask_k, Range<int64_t>{2, int64_t{1} << 31},
        "keys kept per query block, besides sink and window");
      v("block_q", block_q, Range<int64_t>{1, 64}, "queries that share a list");
      v("stride_q", stride_q, Range<int64_t>{1, 64}, "every how many queries of a block score");
      v("block_k", block_k, Range<int64_t>{1, 64}, "keys per selected run");
      v("sink", sink, Range<int64_t>{0, 1 << 20}, "first keys always kept");
      v("window", window, Range<int64_t>{1, int64_t{1} << 31},
        "keys before the first query of a block always kept, itself included");
    }
  };
  struct Plan : AttentionPlanInfo {
    attention_common::WorkerScratch scratch;
    size_t query = 0, keys = 0, score = 0, best = 0, groups = 0, children = 0, picked = 0, gemm = 0,
           top = 0;
    int64_t groups_max = 0;
  };
  static Config FullBudget() {
    Config c;
    c.mask_k = int64_t{1} << 31;
    return c;
  }
  static absl::StatusOr<Hip> Create(const Config& c) {
    if (c.mask_k % c.block_k != 0)
      return absl::InvalidArgumentError(
          absl::StrCat("mask_k=", c.mask_k, " is not a multiple of block_k=", c.block_k));
    return Hip(c);
  }
  absl::StatusOr<Plan> MakePlan(const AttentionShape& s) const {
    Plan p;
    p.shape = s;
    p.max_rows = s.heads * attention_common::MaxTiles(s, config_.block_q);
    p.groups_max = std::min(config_.mask_k, s.max_kv) / config_.block_k + 1;
    p.entry_slots = p.groups_max + 3;
    const int64_t rows = (config_.block_q + config_.stride_q - 1) / config_.stride_q,
                  n = 2 * p.groups_max;
    WorkspaceLayout one, all;
    p.query = one.Add<float>(rows * s.head_dim);
    p.keys = one.Add<float>(n * s.head_dim);
    p.score = one.Add<float>(rows * n);
    p.best = one.Add<float>(n);
    p.groups = one.Add<Group>(n);
    p.children = one.Add<Group>(n);
    p.picked = one.Add<uint32_t>(n);
    p.gemm = one.Add<float>(static_cast<int64_t>(kernels::GemmScratchFloats(s.head_dim)));
    p.top = one.Add<std::byte>(static_cast<int64_t>(kernels::TopKScratchBytes(n)));
    p.scratch.Add(all, one, s.workers);
    p.workspace_bytes = all.bytes();
    return p;
  }
  absl::Status Run(const Plan& p, const AttentionInputs& in, std::byte*, const RunContext& ctx,
                   PlanWriter& out) const {
    const PlanHeader header =
        attention_common::HeaderOf(p.shape, in, ListScope::kQueryHead, config_.block_q);
    SLUICE_RETURN_IF_ERROR(out.Begin(header, Encoding::kRuns, 1));
    attention_common::ForEachRow(header, *ctx.executor, [&](int64_t head, int64_t tile, int w) {
      const int64_t row = out.row_of(head, tile);
      out.set_count(row, Row(p, in, ctx, header, head, tile, w, out.entries(row)));
    });
    return absl::OkStatus();
  }

 private:
  struct Group {
    int64_t start, len;  // in units of block_k after the sink
  };
  explicit Hip(const Config& c) : config_(c) {}

  int64_t Row(const Plan& p, const AttentionInputs& in, const RunContext& ctx,
              const PlanHeader& plan, int64_t head, int64_t tile, int w, PlanEntry* out) const {
    const auto q = attention_common::QueriesOf(plan, tile);
    const int64_t kv = head / (p.shape.heads / p.shape.kv_heads), bk = config_.block_k;
    const auto entry = [](int64_t start, int64_t len, bool forced) {
      return PlanEntry{static_cast<uint32_t>(start),
                       static_cast<uint32_t>(len),
                       EntryState::kExact,
                       MaskClass::kCausal,
                       0,
                       static_cast<uint8_t>(forced)};
    };
    const int64_t sink = std::min(config_.sink, q.last + 1);
    int64_t n = 0;
    if (sink > 0) out[n++] = entry(0, sink, true);
    const int64_t units = (std::max(sink, q.first - config_.window + 1) - sink) / bk,
                  local = sink + units * bk;
    if (units * bk <= config_.mask_k) {
      if (units > 0) out[n++] = entry(sink, units * bk, false);
    } else {
      n = Search(p, in, ctx, q, head, kv, units, sink, w, out, n);
    }
    if (local <= q.last) out[n++] = entry(local, q.last + 1 - local, true);
    return n;
  }
  int64_t Search(const Plan& p, const AttentionInputs& in, const RunContext& ctx,
                 attention_common::TileQueries q, int64_t head, int64_t kv, int64_t units,
                 int64_t sink, int w, PlanEntry* out, int64_t n) const {
    const int64_t d = p.shape.head_dim, bk = config_.block_k, G = config_.mask_k / bk;
    const auto at = [&]<class T>(size_t offset, T*) {
      return p.scratch.At<T>(ctx.workspace, w, offset);
    };
    float* query = at(p.query, static_cast<float*>(nullptr));
    float* keys = at(p.keys, static_cast<float*>(nullptr));
    float* score = at(p.score, static_cast<float*>(nullptr));
    float* best = at(p.best, static_cast<float*>(nullptr));
    Group* groups = at(p.groups, static_cast<Group*>(nullptr));
    Group* children = at(p.children, static_cast<Group*>(nullptr));
    uint32_t* picked = at(p.picked, static_cast<uint32_t*>(nullptr));
    int64_t rows = 0, longest = 0;
    for (int64_t t = q.first; t <= q.last; t += config_.stride_q)
      std::memcpy(query + rows++ * d, in.q.at(t - in.q_begin, head),
                  static_cast<size_t>(d) * sizeof(float));
    for (int64_t i = 0; i < G; ++i) {
      groups[i] = {i * units / G, (i + 1) * units / G - i * units / G};
      longest = std::max(longest, groups[i].len);
    }
    int64_t live = G;
    while (longest > 1) {
      int64_t c = 0;
      for (int64_t i = 0; i < live; ++i) {
        const Group g = groups[i];
        const int64_t half = (g.len + 1) / 2;
        children[c++] = {g.start, half};
        if (g.len > 1) children[c++] = {g.start + half, g.len - half};
      }
      for (int64_t i = 0; i < c; ++i) {
        const int64_t centre = sink + (children[i].start + children[i].len / 2) * bk + bk / 2;
        kernels::ConvertToF32(in.k.at(centre, kv), in.k.dtype, d, keys + i * d);
      }
      kernels::GemmNT(query, d, keys, d, rows, c, d, score, c,
                      at(p.gemm, static_cast<float*>(nullptr)));
      std::memcpy(best, score, static_cast<size_t>(c) * sizeof(float));
      for (int64_t r = 1; r < rows; ++r) {
        for (int64_t i = 0; i < c; ++i) best[i] = std::max(best[i], score[r * c + i]);
      }
      live = kernels::TopK(best, c, G, picked, at(p.top, static_cast<std::byte*>(nullptr))).count;
      longest = 0;
      for (int64_t i = 0; i < live; ++i) {
        groups[i] = children[picked[i]];
        longest = std::max(longest, groups[i].len);
      }
    }
    for (int64_t i = 0; i < live; ++i) {
      if (groups[i].len == 0) continue;
      out[n++] = {static_cast<uint32_t>(sink + groups[i].start * bk),
                  static_cast<uint32_t>(bk),
                  EntryState::kExact,
                  MaskClass::kCausal,
                  0,
                  0};
    }
    return n;
  }
  Config config_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_HIP_HIP_H_
