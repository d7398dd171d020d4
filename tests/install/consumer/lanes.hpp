#pragma once

using lanes_function = int();
