"""What makes uplinks differentially private: mechanisms by privacy unit."""
