// CTK is compiled into the host; its build system would write this file.
#pragma once
#define CTK_WIDGETS_EXPORT
