#include "sluice/runtime/host/packed_experts.h"

#include "sluice/runtime/kernels/packed_gemm/packed_gemm.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<PackedExperts> PackedExperts::Create(const Model& model) {
  const ModelShape& s = model.shape;
  if (s.experts == 0)
    return absl::InvalidArgumentError(
        "packed experts of a model that has none; allowed: a Mixture "
        "of Experts");
  if (s.activation != Activation::kSilu)
    return absl::InvalidArgumentError(
        "packed experts of a model that gates by ReLU; allowed: SiLU");

  PackedExperts out;
  out.experts_ = s.experts;
  out.width_ = s.width;
  out.ffn_ = s.ffn;
  out.half_ = kernels::PackedFloats(s.ffn, s.width);
  out.one_ = 2 * out.half_ + kernels::PackedFloats(s.width, s.ffn);
  out.panels_.Resize(static_cast<size_t>(s.layers * s.experts * out.one_) * sizeof(float));
  float* to = out.panels_.workspace().At<float>(0);
  for (const Layer& layer : model.layers) {
    for (int64_t e = 0; e < s.experts; ++e, to += out.one_) {
      const float* gate = layer.GateUp(s, e);
      kernels::PackRows(gate, s.width, s.ffn, s.width, to);
      kernels::PackRows(gate + s.ffn * s.width, s.width, s.ffn, s.width, to + out.half_);
      kernels::PackRows(layer.Down(s, e), s.ffn, s.width, s.ffn, to + 2 * out.half_);
    }
  }
  return out;
}

void PackedExperts::Add(int64_t layer, const UnitShare& share, const Workspace& workspace) const {
  float* h = workspace.At<float>(0);
  const float* expert = At(layer, share.unit);
  const auto n = static_cast<int64_t>(share.items.size());
  kernels::GatedPacked({share.in.data, share.in.row_stride, share.items.data()}, expert,
                       expert + half_, n, ffn_, width_, h, ffn_);
  kernels::GemmPackedAdd({h, ffn_}, expert + 2 * half_, n, width_, ffn_, share.items.data(),
                         share.weight.data(), share.out.data, share.out.row_stride);
}
}  // namespace host
SLUICE_END_NAMESPACE
