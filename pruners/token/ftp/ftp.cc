#include "sluice/pruners/token/ftp/ftp.h"

SLUICE_BEGIN_NAMESPACE
template class RouterOf<token::Ftp>;
template class RouterOf<token::FtpStatic>;
SLUICE_END_NAMESPACE
