#include "sluice/runtime/kernels/attention_panel/attention_panel.h"

namespace sluice::kernels {
const AmxAttention* GetAmxAttention() { return nullptr; }
}  // namespace sluice::kernels
