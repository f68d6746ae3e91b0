#include "sluice/pruners/head/shrp/shrp.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<head::Shrp>;
SLUICE_END_NAMESPACE
