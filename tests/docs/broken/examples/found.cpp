int found = 2;
