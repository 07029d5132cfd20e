// CTK is compiled into the host; its build system would write this file.
#pragma once
#define CTK_CORE_EXPORT
