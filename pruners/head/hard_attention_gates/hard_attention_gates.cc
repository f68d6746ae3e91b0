#include "sluice/pruners/head/hard_attention_gates/hard_attention_gates.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<head::HardAttentionGates>;
SLUICE_END_NAMESPACE
