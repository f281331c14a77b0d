"""What encodes: architecture, loading, students, teachers, packed forward passes."""
